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
def store_12(row, at, numbers, other_numbers, mask, end):
    """Write two numbers of 12 bits to three bytes, as far as they lie in front of an end."""
    both = numbers | (other_numbers << 12)
    for byte in tl.static_range(3):
        tl.store(row + at + byte, ((both >> (8 * byte)) & 0xFF).to(tl.uint8), mask=mask & (at + byte < end))


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
def write_counts_16(row, at, full_at, above, equal, more, same, ties, groups):
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


@triton.jit
def write_counts_12(row, at, full_at, offsets_at, in_tile, TILES: tl.constexpr):
    """Write how many entries each chunk of 4,096 of this group has, two tiles each, in 12 bits; and which are full."""
    pair = tl.arange(0, TILES // 4)
    tile = tl.arange(0, 4)[None, :]
    fours = tl.reshape(in_tile, [TILES // 4, 4])
    one = tl.sum(tl.where(tile < 2, fours, 0), axis=1)
    two = tl.sum(tl.where(tile < 2, 0, fours), axis=1)
    group = tl.program_id(0)
    store_12(row, at + group * (TILES // 4 * 3) + 3 * pair, one & 0xFFF, two & 0xFFF, pair >= 0, full_at)
    full = ((one >> 12) | ((two >> 12) << 1)) << (2 * (pair % 4))
    for byte in tl.static_range(TILES // 16):
        bits = tl.sum(tl.where(pair // 4 == byte, full, 0))
        place = full_at + group * (TILES // 16) + byte
        tl.store(row + place, bits.to(tl.uint8), mask=place < offsets_at)
