"""The k chosen entries in ascending order, and in a row for the wire; what that rounds off stays in the residual."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .count import LANES, read, spans, totals
from .parts import KTH, TIES, TILE, TILES, WHOLE, bf16_bits, key_of
from .registry import op

KEEPS, REMOVES = 0, 1
WRITES = {16: 2, 32: 3}
"""What becomes of the chosen: they stay in the vector; they leave it; they leave it for a row, in so many bits each."""


@triton.jit
def before_group(above, equal, group, BLOCK: tl.constexpr):
    """Add up what the groups before this one have."""
    more, same = 0, 0
    for start in range(0, group, BLOCK):
        place = start + tl.arange(0, BLOCK)
        more += tl.sum(tl.load(above + place, mask=place < group, other=0))
        same += tl.sum(tl.load(equal + place, mask=place < group, other=0))
    return more, same


@triton.jit
def store_16(row, at, bits, mask):
    """Write 16 bits to a place in a row that may be odd."""
    tl.store(row + at, (bits & 0xFF).to(tl.uint8), mask=mask)
    tl.store(row + at + 1, ((bits >> 8) & 0xFF).to(tl.uint8), mask=mask)


@triton.jit
def store_32(row, at, number):
    """Write a number of 32 bits, without sign, to a place in a row that may be odd."""
    places = tl.arange(0, 4)
    tl.store(row + at + places, ((number >> (8 * places)) & 0xFF).to(tl.uint8))


@triton.jit
def write_frame(row, word, numel, k, index_bytes, used, size, BLOCK: tl.constexpr):
    """Write the header, with no checksum, and zeros behind what is used."""
    store_32(row, 0, word)
    store_32(row, 4, numel)
    store_32(row, 8, k)
    store_32(row, 12, index_bytes)
    store_32(row, 16, 0)
    for start in range(used, size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(row + place, tl.zeros([BLOCK], tl.uint8), mask=place < size)


@triton.jit
def write_counts(row, at, full_at, above, equal, more, same, ties, groups):
    """Write how many entries this chunk has, in 16 bits, and every eighth time the bits of 8 chunks that are full."""
    group = tl.program_id(0)
    eight = tl.arange(0, 8)
    there = group + eight < groups
    here = tl.load(above + group + eight, mask=there, other=0)
    tied = tl.load(equal + group + eight, mask=there, other=0)
    left = tl.maximum(ties - (same + tl.cumsum(tied) - tied), 0)
    chosen = here + tl.minimum(tied, left)
    store_16(row, at + 2 * (group + eight), chosen, there & (eight == 0))
    if group % 8 == 0:
        full = tl.sum((chosen >> 16) << eight)
        tl.store(row + full_at + group // 8, full.to(tl.uint8))


@triton.jit(
    do_not_specialize=[
        *("tiles", "groups", "numel", "k", "row_bytes", "word"),
        *("counts_at", "full_at", "offsets_at", "values_at", "used"),
    ],
    do_not_specialize_on_alignment=["values"],
)
def emit_kernel(
    candidates,
    places,
    values,
    state,
    begins,
    counts,
    above,
    equal,
    indices,
    chosen_values,
    hint,
    row,
    tiles,
    groups,
    numel,
    k,
    row_bytes,
    word,
    counts_at,
    full_at,
    offsets_at,
    values_at,
    used,
    FATE: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    LANES: tl.constexpr,
):
    """Handle one group: how many are chosen before it, then before each of its tiles, then each entry of these."""
    group = tl.program_id(0)
    whole, kth, ties = tl.load(state + WHOLE), tl.load(state + KTH), tl.load(state + TIES)
    begin, count = spans(begins, counts, whole, tiles, numel, TILE, TILES)
    more, same = before_group(above, equal, group, 512)
    if group == 0:
        tl.store(hint, kth.to(tl.float32, bitcast=True))
    if FATE >= 2:
        write_counts(row, counts_at, full_at, above, equal, more, same, ties, groups)
        if group == 0:
            write_frame(row, word, numel, k, values_at - counts_at, used, row_bytes, 128)
    in_tile, tied = totals(candidates, values, begin, count, whole, kth, TILES, LANES)
    more_before = more + tl.cumsum(in_tile) - in_tile
    same_before = same + tl.cumsum(tied) - tied
    for start in range(0, tl.max(count), LANES):
        there, place, value = read(candidates, values, begin, count, start, whole, LANES)
        index = place
        if whole == 0:
            index = tl.load(places + place, mask=there, other=0)
        key = key_of(value)
        larger, equals = (there & (key > kth)).to(tl.int32), (there & (key == kth)).to(tl.int32)
        above_it = more_before[:, None] + tl.cumsum(larger, axis=1) - larger
        ties_before = same_before[:, None] + tl.cumsum(equals, axis=1) - equals
        chosen = (larger == 1) | ((equals == 1) & (ties_before < ties))
        target = above_it + tl.minimum(ties_before, ties)
        tl.store(indices + target, index, mask=chosen)
        tl.store(chosen_values + target, value, mask=chosen)
        if FATE == 1:
            tl.store(values + index, tl.zeros_like(value), mask=chosen)
        if FATE >= 2:
            store_16(row, offsets_at + 2 * target, index, chosen)
        if FATE == 2:
            bits = bf16_bits(value, True)
            store_16(row, values_at + 2 * target, bits, chosen)
            tl.store(values + index, value - (bits << 16).to(tl.float32, bitcast=True), mask=chosen)
        if FATE == 3:
            bits = value.to(tl.int32, bitcast=True)
            store_16(row, values_at + 4 * target, bits, chosen)
            store_16(row, values_at + 4 * target + 2, bits >> 16, chosen)
            tl.store(values + index, tl.zeros_like(value), mask=chosen)
        more_before += tl.sum(larger, axis=1)
        same_before += tl.sum(equals, axis=1)


@op(
    "emit(Tensor candidates, Tensor places, Tensor(a!) values, Tensor state, Tensor begins, Tensor counts, "
    "Tensor above, Tensor equal, Tensor(b!) indices, Tensor(c!) chosen, Tensor(d!) hint, Tensor(e!)? row, "
    "int[] frame, int fate)"
)
def emit(
    candidates: Tensor,
    places: Tensor,
    values: Tensor,
    state: Tensor,
    begins: Tensor,
    counts: Tensor,
    above: Tensor,
    equal: Tensor,
    indices: Tensor,
    chosen: Tensor,
    hint: Tensor,
    row: Tensor | None,
    frame: list[int],
    fate: int,
) -> None:
    """Write the chosen entries.

    Args:
        candidates: float32 ``[room]``, of ``sweep``.
        places: int32 ``[room]``, where they stand in ``values``.
        values: float32 ``[numel]``; the chosen leave it, but for what a row rounds off.
        state: as in ``parts``.
        begins: int32 ``[tiles]``, where the candidates of a tile begin.
        counts: int32 ``[tiles]``, how many it has.
        above: int32 ``[groups]``, of ``count``.
        equal: likewise.
        indices: int32 ``[k]``; ascending.
        chosen: float32 ``[k]``; what stood there.
        hint: 0-d float32; the k-th magnitude.
        row: uint8 ``[bytes]``; becomes a payload, and zeros behind it. None: there is none.
        frame: first word of the header, where counts, full bits, offsets and values begin, and where the values end.
        fate: ``KEEPS``, ``REMOVES``, or one of ``WRITES``.
    """
    word, counts_at, full_at, offsets_at, values_at, used = frame or [0] * 6
    emit_kernel[(above.numel(),)](
        candidates,
        places,
        values,
        state,
        begins,
        counts,
        above,
        equal,
        indices,
        chosen,
        hint,
        state if row is None else row,
        counts.numel(),
        above.numel(),
        values.numel(),
        indices.numel(),
        0 if row is None else row.numel(),
        word,
        counts_at,
        full_at,
        offsets_at,
        values_at,
        used,
        FATE=fate,
        TILE=TILE,
        TILES=TILES,
        LANES=LANES,
        num_warps=4,
        enable_fp_fusion=False,
    )
