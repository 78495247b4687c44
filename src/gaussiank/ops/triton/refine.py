"""The last 16 bits of the k-th key, where the candidates did not do; else it ends at once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .parts import COARSE, DONE_REFINE, FINE, HISTOGRAMS, KTH, PREFIX, TIES, WHOLE, add_to_histogram, bin_of, is_last
from .pick import PROGRAMS
from .registry import op


@triton.jit(do_not_specialize=["numel"], do_not_specialize_on_alignment=["values"])
def refine_kernel(values, state, numel, AT: tl.constexpr, FINE: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """Count the keys with the prefix that ``pick`` has found."""
    if tl.load(state + WHOLE) == 2:
        add_to_histogram(values, state, AT, numel, True, BLOCK)
        if is_last(state, DONE_REFINE):
            last, ties, _ = bin_of(state, AT, FINE, tl.load(state + TIES), BINS)
            tl.store(state + KTH, (tl.load(state + PREFIX) << 16) | last)
            tl.store(state + TIES, ties)


@op("refine(Tensor values, Tensor(a!) state)")
def refine(values: Tensor, state: Tensor) -> None:
    """End what ``pick`` has begun, on the same ``values`` and ``state``."""
    numel, block = values.numel(), 2048
    grid = (min(triton.cdiv(numel, block), PROGRAMS),)
    refine_kernel[grid](
        values,
        state,
        numel,
        AT=HISTOGRAMS.value + COARSE,
        FINE=FINE,
        BLOCK=block,
        BINS=4096,
        num_warps=8,
        enable_fp_fusion=False,
    )
