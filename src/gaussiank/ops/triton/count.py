"""How many entries of each group of tiles are above the k-th key, and how many equal it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .parts import KTH, TILE, TILES, WHOLE, key_of
from .registry import op

LANES = 32
"""Entries of each tile that are looked at together."""


@triton.jit
def spans(begins, counts, whole, tiles, numel, TILE: tl.constexpr, TILES: tl.constexpr):
    """Return where the entries of each tile of this group begin, and how many there are: candidates, or all."""
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    begin = tl.load(begins + tile, mask=tile < tiles, other=0)
    count = tl.load(counts + tile, mask=tile < tiles, other=0)
    if whole != 0:
        begin = tl.where(tile < tiles, tile, 0) * TILE
        count = tl.where(tile < tiles, tl.minimum(numel - begin, TILE), 0)
    return begin, count


@triton.jit
def read(candidates, values, begin, count, start, whole, LANES: tl.constexpr):
    """Read some entries of each tile: whether there is one, where it stands in its list, and its value."""
    lane = start + tl.arange(0, LANES)[None, :]
    there = lane < count[:, None]
    place = begin[:, None] + lane
    if whole == 0:
        value = tl.load(candidates + place, mask=there, other=0.0)
    else:
        value = tl.load(values + place, mask=there, other=0.0)
    return there, place, value


@triton.jit
def totals(candidates, values, begin, count, whole, kth, TILES: tl.constexpr, LANES: tl.constexpr):
    """Count, tile by tile, the entries above the k-th key, and those equal to it."""
    above = tl.zeros([TILES], tl.int32)
    equal = tl.zeros([TILES], tl.int32)
    for start in range(0, tl.max(count), LANES):
        there, _, value = read(candidates, values, begin, count, start, whole, LANES)
        key = key_of(value)
        above += tl.sum((there & (key > kth)).to(tl.int32), axis=1)
        equal += tl.sum((there & (key == kth)).to(tl.int32), axis=1)
    return above, equal


@triton.jit(do_not_specialize=["tiles", "numel"], do_not_specialize_on_alignment=["values"])
def count_kernel(
    candidates,
    values,
    state,
    begins,
    counts,
    above,
    equal,
    tiles,
    numel,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    LANES: tl.constexpr,
):
    """Handle one group."""
    whole, kth = tl.load(state + WHOLE), tl.load(state + KTH)
    begin, count = spans(begins, counts, whole, tiles, numel, TILE, TILES)
    more, same = totals(candidates, values, begin, count, whole, kth, TILES, LANES)
    tl.store(above + tl.program_id(0), tl.sum(more))
    tl.store(equal + tl.program_id(0), tl.sum(same))


@op(
    "count(Tensor candidates, Tensor values, Tensor state, Tensor begins, Tensor counts, Tensor(a!) above, "
    "Tensor(b!) equal)"
)
def count(
    candidates: Tensor, values: Tensor, state: Tensor, begins: Tensor, counts: Tensor, above: Tensor, equal: Tensor
) -> None:
    """Count for each group; writes int32 ``above`` and ``equal``, ``[groups]``."""
    count_kernel[(above.numel(),)](
        candidates,
        values,
        state,
        begins,
        counts,
        above,
        equal,
        counts.numel(),
        values.numel(),
        TILE=TILE,
        TILES=TILES,
        LANES=LANES,
        num_warps=4,
        enable_fp_fusion=False,
    )
