"""The mean of all workers' rows: each program owns a span and adds the ranks in order, without atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts import BAD, DONE_MEAN, bf16_bits, is_last
from .registry import op

SPAN = 1 << 16
NARROW = {torch.bfloat16: 1, torch.float16: 2}
"""What a mean is rounded to, if to 16 bits."""


@triton.jit
def load_16(row, at, mask):
    """Read 16 bits from a place in a row that may be odd."""
    low = tl.load(row + at, mask=mask, other=0).to(tl.int32)
    return low | (tl.load(row + at + 1, mask=mask, other=0).to(tl.int32) << 8)


@triton.jit
def load_number(row, at, place, mask, BITS: tl.constexpr):
    """Read number ``place`` of a stream of numbers of 12 or 16 bits."""
    if BITS == 16:
        return load_16(row, at + 2 * place, mask)
    pair = load_16(row, at + place + (place >> 1), mask)
    return (pair >> (4 * (place & 1))) & 0xFFF


@triton.jit
def chunk_entries(row, counts_at, full_at, chunk, mask, BITS: tl.constexpr):
    """Read how many entries chunks have: a number of so many bits, and one more bit for a full one."""
    full = (tl.load(row + full_at + chunk // 8, mask=mask, other=0).to(tl.int32) >> (chunk % 8)) & 1
    return load_number(row, counts_at, chunk, mask, BITS) | (full << BITS)


@triton.jit
def entries_before(row, counts_at, full_at, span, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Add up how many entries there are in front of a span: of its chunk of 16 bits, or its 16 of 12.

    Of 12 bits, byte by byte: numbers begin and end with a span there, and each byte has parts of known weight.
    """
    before = 0
    if BITS == 16:
        for start in range(0, span, BLOCK):
            chunk = start + tl.arange(0, BLOCK)
            before += tl.sum(chunk_entries(row, counts_at, full_at, chunk, chunk < span, BITS))
    else:
        for start in range(0, 24 * span, BLOCK):
            place = start + tl.arange(0, BLOCK)
            byte = tl.load(row + counts_at + place, mask=place < 24 * span, other=0).to(tl.int32)
            in_middle = ((byte & 15) << 8) + (byte >> 4)
            before += tl.sum(tl.where(place % 3 == 0, byte, tl.where(place % 3 == 1, in_middle, byte << 4)))
        for start in range(0, 2 * span, BLOCK):
            place = start + tl.arange(0, BLOCK)
            byte = tl.load(row + full_at + place, mask=place < 2 * span, other=0).to(tl.int32)
            twos = byte - ((byte >> 1) & 0x55)
            fours = (twos & 0x33) + ((twos >> 2) & 0x33)
            before += tl.sum((fours & 15) + (fours >> 4)) << 12
    return before


@triton.jit
def load_value(row, at, place, slots, mask, BITS: tl.constexpr):
    """Read a value of 2, 16 or 32 bits."""
    if BITS == 2:
        scale_bits = load_16(row, at + (slots + 3) // 4 + 2 * (place // 64), mask) << 16
        scale = scale_bits.to(tl.float32, bitcast=True)
        level = (tl.load(row + at + place // 4, mask=mask, other=0).to(tl.int32) >> (2 * (place % 4))) & 3
        signed = tl.where(level % 2 == 1, -scale, scale)
        value = tl.where(level >= 2, 2 * signed, signed) + 0.0
        infinity = tl.where(level == 1, float("inf"), float("-inf"))
        signal = tl.where(level == 0, 0.0, tl.where(level == 3, float("nan"), infinity))
        return tl.where((scale_bits & 0x7FFFFFFF) > 0x7F800000, signal, value)
    if BITS == 16:
        bits = load_16(row, at + 2 * place, mask) << 16
    else:
        bits = load_16(row, at + 4 * place, mask) | (load_16(row, at + 4 * place + 2, mask) << 16)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def narrowed(mean, NARROW: tl.constexpr):
    """Round float32 to the bits of a type of 16, and return them with what they stand for."""
    if NARROW == 1:
        bits = bf16_bits(mean, False)
        return bits.to(tl.int16), (bits << 16).to(tl.float32, bitcast=True)
    half = mean.to(tl.float16)
    return half.to(tl.int16, bitcast=True), half.to(tl.float32)


@triton.jit(
    do_not_specialize=["workers", "stride", "numel", "counts_at", "full_at", "offsets_at", "values_at", "slots"],
    do_not_specialize_on_alignment=["rows", "out", "grad", "residual"],
)
def decode_mean_kernel(
    rows,
    out,
    state,
    finite,
    grad,
    residual,
    workers,
    stride,
    numel,
    slots,
    counts_at,
    full_at,
    offsets_at,
    values_at,
    OFFSETS: tl.constexpr,
    BITS: tl.constexpr,
    NARROW: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
    FEW: tl.constexpr,
):
    """Clear one span, a chunk of 16 bits or 16 of 12, add each rank's entries, divide."""
    span = tl.program_id(0)
    first = span * SPAN
    chunks = (SPAN >> OFFSETS) * span + tl.arange(0, 16)
    mine = (tl.arange(0, 16) < (SPAN >> OFFSETS)) & (chunks <= (numel - 1) >> OFFSETS)
    length = tl.minimum(numel - first, SPAN)
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(out + first + place, tl.zeros([BLOCK], tl.float32), mask=place < length)
    for rank in range(workers):
        tl.debug_barrier()  # what the rank before has written is there
        row = rows + rank * stride.to(tl.int64)
        before = entries_before(row, counts_at, full_at, span, OFFSETS, BLOCK)
        ends = before + tl.cumsum(chunk_entries(row, counts_at, full_at, chunks, mine, OFFSETS))
        end = tl.minimum(tl.max(ends), slots)  # never past the row, whatever it says
        for start in range(before, end, FEW):
            place = start + tl.arange(0, FEW)
            there = place < end
            at = load_number(row, offsets_at, place, there, OFFSETS)
            if OFFSETS == 12:
                at += tl.sum((place[:, None] >= ends[None, :]).to(tl.int32), axis=1) << 12
            there = there & (at < length)
            value = load_value(row, values_at, place, slots, there, BITS)
            total = tl.load(out + first + at, mask=there, other=0.0) + value
            tl.store(out + first + at, total, mask=there)
    tl.debug_barrier()
    bad = 0
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total = tl.load(out + first + place, mask=place < length, other=0.0)
        mean = tl.div_rn(total, tl.zeros([BLOCK], tl.float32) + workers)
        if NARROW == 0:
            tl.store(out + first + place, mean, mask=place < length)
        else:
            bits, sent = narrowed(mean, NARROW)
            tl.store(grad + first + place, bits, mask=place < length)
            mean -= sent  # what is rounded off: not finite where the mean is not, or where 16 bits cannot hold it
            rest = tl.load(residual + first + place, mask=place < length, other=0.0)
            tl.store(residual + first + place, rest + mean, mask=place < length)
        bad |= tl.max(((mean.to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000).to(tl.int32))
    if bad != 0:
        tl.atomic_or(state + BAD, 1, sem="relaxed")
    if is_last(state, DONE_MEAN):
        tl.store(finite, (tl.load(state + BAD, cache_modifier=".cg") == 0).to(tl.int1))


@op(
    "decode_mean(Tensor rows, Tensor(a!) out, Tensor(b!) state, Tensor(c!) finite, Tensor(d!)? grad, "
    "Tensor(e!)? residual, int slots, int[] frame)"
)
def decode_mean(
    rows: Tensor,
    out: Tensor,
    state: Tensor,
    finite: Tensor,
    grad: Tensor | None,
    residual: Tensor | None,
    slots: int,
    frame: list[int],
) -> None:
    """Write the mean of what rows hold.

    Args:
        rows: uint8 ``[world_size, bytes]``, one payload each; bytes of a row are end to end.
        out: float32 ``[numel]``; overwritten.
        state: as in ``parts``, zero.
        finite: bool ``[]``; whether the mean is finite.
        grad: bfloat16 or float16 ``[numel]``, which becomes the mean in place of ``out``; or None.
        residual: float32 ``[numel]``, which what is rounded off is added to; or None.
        slots: entries that a row has room for.
        frame: of a row: its ``RowFormat`` from ``counts_at`` on.
    """
    counts_at, full_at, offsets_at, values_at, _, value_bits, offset_bits = frame
    numel = out.numel()
    decode_mean_kernel[(triton.cdiv(numel, SPAN),)](
        rows,
        out,
        state,
        finite,
        out if grad is None else grad.view(torch.int16),
        out if residual is None else residual,
        rows.shape[0],
        rows.stride(0),
        numel,
        slots,
        counts_at,
        full_at,
        offsets_at,
        values_at,
        OFFSETS=offset_bits,
        BITS=value_bits,
        NARROW=0 if grad is None else NARROW[grad.dtype],
        SPAN=SPAN,
        BLOCK=2048,
        FEW=256,
        num_warps=8,
        enable_fp_fusion=False,
    )
