"""The k chosen entries in ascending order, and in a row for the wire; what that rounds off stays in the residual."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .count import LANES, read, spans, totals
from .frame import store_16, write_counts_12, write_counts_16, write_frame
from .pack import BLOCKS, pack
from .parts import ARRIVED, KTH, TIES, TILE, TILES, WHOLE, bf16_bits, key_of
from .registry import op


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
def put(row, index, value, target, chosen, offsets_at, values_at, BITS: tl.constexpr):
    """Write entries to a row in which each has bytes of its own; returns what that rounds off."""
    store_16(row, offsets_at + 2 * target, index, chosen)
    rest = tl.zeros_like(value)
    if BITS == 16:
        bits = bf16_bits(value, True)
        rest = value - (bits << 16).to(tl.float32, bitcast=True)
        store_16(row, values_at + 2 * target, bits, chosen)
    else:
        bits = value.to(tl.int32, bitcast=True)
        store_16(row, values_at + 4 * target, bits, chosen)
        store_16(row, values_at + 4 * target + 2, bits >> 16, chosen)
    return rest


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
    REMOVES: tl.constexpr,
    OFFSETS: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    LANES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Handle one group: how many are chosen before it, then before each of its tiles, then each entry of these.

    With OFFSETS, which says of how many bits, they go into a row: one by one with 16, block by block with 12.
    """
    group = tl.program_id(0)
    whole, kth, ties = tl.load(state + WHOLE), tl.load(state + KTH), tl.load(state + TIES)
    begin, count = spans(begins, counts, whole, tiles, numel, TILE, TILES)
    more, same = before_group(above, equal, group, 512)
    if group == 0:
        tl.store(hint, kth.to(tl.float32, bitcast=True))
    in_tile, tied = totals(candidates, values, begin, count, whole, kth, TILES, LANES)
    more_before = more + tl.cumsum(in_tile) - in_tile
    same_before = same + tl.cumsum(tied) - tied
    written = 0
    if OFFSETS > 0 and group == 0:
        write_frame(row, word, numel, k, values_at - counts_at, used, row_bytes, 128)
    if OFFSETS == 16:
        write_counts_16(row, counts_at, full_at, above, equal, more, same, ties, groups)
    if OFFSETS == 12:
        chosen_in_tile = in_tile + tl.minimum(tied, tl.maximum(ties - same_before, 0))
        written = tl.sum(chosen_in_tile)
        write_counts_12(row, counts_at, full_at, offsets_at, chosen_in_tile, TILES)
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
        rest = tl.zeros_like(value)
        if OFFSETS == 16:
            rest = put(row, index, value, target, chosen, offsets_at, values_at, BITS)
        if REMOVES:
            tl.store(values + index, rest, mask=chosen)
        more_before += tl.sum(larger, axis=1)
        same_before += tl.sum(equals, axis=1)
    if OFFSETS == 12:
        first = more + tl.minimum(same, ties)
        arrived = state + ARRIVED
        pack(row, indices, chosen_values, values, arrived, first, written, k, offsets_at, values_at, BITS, BLOCKS)


@op(
    "emit(Tensor candidates, Tensor places, Tensor(a!) values, Tensor(b!) state, Tensor begins, Tensor counts, "
    "Tensor above, Tensor equal, Tensor(c!) indices, Tensor(d!) chosen, Tensor(e!) hint, Tensor(f!)? row, "
    "int[] frame, bool removes)"
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
    removes: bool,
) -> None:
    """Write the chosen entries.

    Args:
        candidates: float32 ``[room]``, of ``sweep``.
        places: int32 ``[room]``, where they stand in ``values``.
        values: float32 ``[numel]``; the chosen leave it, but for what a row rounds off.
        state: as in ``parts``; where a row has blocks, with a zero behind it for each.
        begins: int32 ``[tiles]``, where the candidates of a tile begin.
        counts: int32 ``[tiles]``, how many it has.
        above: int32 ``[groups]``, of ``count``.
        equal: likewise.
        indices: int32 ``[k]``; ascending.
        chosen: float32 ``[k]``; what stood there.
        hint: 0-d float32; the k-th magnitude.
        row: uint8 ``[bytes]``; becomes a payload, and zeros behind it, where the mean will count. None: there is none.
        frame: of the row: its ``RowFormat`` from ``word`` on.
        removes: whether the chosen leave the vector; with a row they do.
    """
    word, counts_at, full_at, offsets_at, values_at, used, value_bits, offset_bits = frame or [0] * 8
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
        REMOVES=removes and offset_bits != 12,
        OFFSETS=offset_bits,
        BITS=value_bits,
        TILE=TILE,
        TILES=TILES,
        LANES=LANES,
        BLOCKS=BLOCKS,
        num_warps=4,
        enable_fp_fusion=False,
    )
