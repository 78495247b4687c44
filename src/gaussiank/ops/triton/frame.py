"""What a row for the wire holds beside its entries: the header, how many entries each chunk has, zeros at the end."""

from __future__ import annotations

import triton
import triton.language as tl


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
