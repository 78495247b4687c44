"""The k-th key: among the candidates where these do, else from a histogram of the whole vector, begun here."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .parts import (
    COARSE,
    DONE_PICK,
    HEAD,
    HISTOGRAMS,
    KTH,
    PREFIX,
    TIES,
    WHOLE,
    add_to_histogram,
    bin_of,
    is_last,
    key_of,
)
from .registry import op

PROGRAMS = 512
"""Most programs that read the whole vector where the candidates do not do; else all but one end at once."""


@triton.jit
def kth_of(candidates, count, k, BLOCK: tl.constexpr):
    """Find the key of the k-th largest candidate, 8 bits at a time, and how many of those equal to it are taken."""
    kth = 0
    digits = tl.arange(0, 512)  # bins 256 to 511 are digits, bin 0 takes what has another prefix
    for shift in tl.static_range(24, -1, -8):
        entries = tl.zeros([512], tl.int32)
        for start in range(0, count, BLOCK):
            place = start + tl.arange(0, BLOCK)
            key = key_of(tl.load(candidates + place, mask=place < count, other=0.0))
            inside = (place < count) & ((key >> shift >> 8) == (kth >> shift >> 8))
            entries += tl.histogram(tl.where(inside, ((key >> shift) & 255) + 256, 0), 512)
        entries = tl.where(digits >= 256, entries, 0)
        above = tl.sum(entries) - tl.cumsum(entries)
        here = (above < k) & (k <= above + entries)
        kth = kth | (tl.sum(tl.where(here, digits - 256, 0)) << shift)
        k -= tl.sum(tl.where(here, above, 0))
    return kth, k


@triton.jit(do_not_specialize=["k", "room", "numel"], do_not_specialize_on_alignment=["values"])
def pick_kernel(
    candidates, values, state, k, room, numel, COARSE: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr
):
    """Look at the candidates in one program, or at the whole vector in all of them."""
    found = tl.load(state + HEAD)
    if (found >= k) & (found <= room):
        if tl.program_id(0) == 0:
            kth, ties = kth_of(candidates, found, k.to(tl.int32), BLOCK)
            tl.store(state + KTH, kth)
            tl.store(state + TIES, ties)
    else:
        add_to_histogram(values, state, HISTOGRAMS, numel, False, BLOCK)
        if is_last(state, DONE_PICK):
            prefix, ties, total = bin_of(state, HISTOGRAMS, COARSE, k.to(tl.int32), BINS)
            # fewer than k that are not zero: all of them, and of the zeros the first ones
            tl.store(state + TIES, tl.where(total < k, k - total, ties))
            tl.store(state + PREFIX, prefix)
            tl.store(state + WHOLE, tl.where(total < k, 1, 2))


@op("pick(Tensor candidates, Tensor values, Tensor(a!) state, int k)")
def pick(candidates: Tensor, values: Tensor, state: Tensor, k: int) -> None:
    """Find the key of the k-th largest entry, if the candidates are all that are larger than some limit.

    If they are fewer than k, or there was no room for all, ``values`` is read, and ``refine`` has to follow.

    Args:
        candidates: float32 ``[room]``, of ``sweep``.
        values: float32 ``[numel]``, all entries.
        state: as in ``parts``.
        k: entries to choose.
    """
    numel, block = values.numel(), 2048
    grid = (min(triton.cdiv(numel, block), PROGRAMS),)
    pick_kernel[grid](
        candidates,
        values,
        state,
        k,
        candidates.numel(),
        numel,
        COARSE=COARSE,
        BLOCK=block,
        BINS=4096,
        num_warps=8,
        enable_fp_fusion=False,
    )
