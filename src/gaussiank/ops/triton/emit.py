"""The k chosen entries in ascending order, and in a row for the wire; what that rounds off stays in the residual."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .count import LANES, read, spans, totals
from .frame import store_16, write_counts, write_frame
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
