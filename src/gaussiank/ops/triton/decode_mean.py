"""The mean of all workers' rows: each program owns a chunk and adds the ranks in order, without atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts import BAD, DONE_MEAN, bf16_bits, is_last
from .registry import op

CHUNK = 1 << 16
NARROW = {torch.bfloat16: 1, torch.float16: 2}
"""What a mean is rounded to, if to 16 bits."""


@triton.jit
def load_16(row, at, mask):
    """Read 16 bits from a place in a row that may be odd."""
    low = tl.load(row + at, mask=mask, other=0).to(tl.int32)
    return low | (tl.load(row + at + 1, mask=mask, other=0).to(tl.int32) << 8)


@triton.jit
def chunk_entries(row, counts_at, full_at, chunk, mask):
    """Read how many entries chunks have: 16 bits, and one more for a full one."""
    full = (tl.load(row + full_at + chunk // 8, mask=mask, other=0).to(tl.int32) >> (chunk % 8)) & 1
    return load_16(row, counts_at + 2 * chunk, mask) | (full << 16)


@triton.jit
def load_value(row, at, place, mask, BITS: tl.constexpr):
    """Read a value of 16 or 32 bits."""
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
    BITS: tl.constexpr,
    NARROW: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    FEW: tl.constexpr,
):
    """Clear one chunk, add each rank's entries, divide."""
    chunk = tl.program_id(0)
    first = chunk * CHUNK
    length = tl.minimum(numel - first, CHUNK)
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(out + first + place, tl.zeros([BLOCK], tl.float32), mask=place < length)
    for rank in range(workers):
        tl.debug_barrier()  # what the rank before has written is there
        row = rows + rank * stride.to(tl.int64)
        before = 0
        for start in range(0, chunk, BLOCK):
            earlier = start + tl.arange(0, BLOCK)
            before += tl.sum(chunk_entries(row, counts_at, full_at, earlier, earlier < chunk))
        mine = tl.sum(chunk_entries(row, counts_at, full_at, chunk + tl.arange(0, 2), tl.arange(0, 2) == 0))
        end = tl.minimum(before + mine, slots)  # never past the row, whatever it says
        for start in range(before, end, FEW):
            place = start + tl.arange(0, FEW)
            there = place < end
            at = load_16(row, offsets_at + 2 * place, there)
            there = there & (at < length)
            value = load_value(row, values_at, place, there, BITS)
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
    "Tensor(e!)? residual, int slots, int[] frame, int bits)"
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
    bits: int,
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
        frame: where counts, full bits, offsets and values begin.
        bits: of a value: 16 or 32.
    """
    counts_at, full_at, offsets_at, values_at = frame
    numel = out.numel()
    decode_mean_kernel[(triton.cdiv(numel, CHUNK),)](
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
        BITS=bits,
        NARROW=0 if grad is None else NARROW[grad.dtype],
        CHUNK=CHUNK,
        BLOCK=2048,
        FEW=256,
        num_warps=8,
        enable_fp_fusion=False,
    )
