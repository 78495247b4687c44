"""Blocks of 64 entries of a row, where neighbours share bytes or a scale: offsets of 12 bits, values of 2 or 16.

A block may hold entries of several programs of ``emit``. Each of these says how many it has written; who finds that
its own are the last ones packs the block. Nobody waits, and who it is makes no difference.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .frame import store_12, store_16
from .parts import INFINITE, bf16_bits

BLOCK = tl.constexpr(64)
"""Entries of a block: of one scale of ``2bit``, and 96 bytes of offsets."""

BLOCKS = 16
"""Blocks that a program packs together; with 4 or 8 ptxas spills two registers for one architecture or another."""

LARGEST = tl.constexpr((2 - 2.0**-7) * 2.0**126)  # half of bfloat16's largest number: twice the scale is finite
BROKEN = tl.constexpr(0x7FC0)  # in the place of the scale of a block with an infinity or NaN, which carries those alone


@triton.jit
def blocks_to_pack(arrived, first, end, k):
    """Return the first of the blocks that this program packs, and the one behind the last of them.

    Those in the middle of its own entries, from ``first`` to ``end``, are its own; the two at the ends are, if no
    entry of others is missing. To be called when all of its entries are written.
    """
    from_block, to_block = 0, 0
    if end > first:
        tl.debug_barrier()  # all threads have written
        head, tail = first // BLOCK, (end - 1) // BLOCK
        whole = is_whole(arrived, head, first, end, k)
        from_block = head + 1 - whole
        if tail > head:
            whole = is_whole(arrived, tail, first, end, k)
        to_block = tail + whole
        tl.debug_barrier()  # no thread reads before that is known
    return from_block, to_block


@triton.jit
def is_whole(arrived, block, first, end, k):
    """Add this program's entries of a block to those that are written; 1 if none is missing then."""
    begin = block * BLOCK
    behind = tl.minimum(begin + BLOCK, k)
    mine = tl.minimum(end, behind) - tl.maximum(first, begin)
    return (tl.atomic_add(arrived + block, mine, sem="acq_rel") + mine == behind - begin).to(tl.int32)


@triton.jit
def multiples(magnitudes, scale):
    """Return how many scales each magnitude stands for; as ``reference.two_level_multiples``."""
    return tl.where(magnitudes >= 1.5 * scale, 2.0, 1.0)


@triton.jit
def scale_bits(magnitudes, there):
    """Fit a scale to each block, in float64, and round it to the bits of bfloat16; as ``reference.two_level_scale``."""
    wide, weights = magnitudes.to(tl.float64), there.to(tl.float64)
    scale = 0.75 * tl.sum(wide, axis=1) / tl.maximum(tl.sum(weights, axis=1), 1.0)
    for _ in tl.static_range(2):
        times = multiples(wide, scale[:, None]).to(tl.float64) * weights
        scale = tl.sum(wide * times, axis=1) / tl.maximum(tl.sum(times * times, axis=1), 1.0)
    return bf16_bits(tl.minimum(scale, LARGEST).to(tl.float32), False)


@triton.jit
def in_two_bits(values, there):
    """Round ``[blocks, 64]`` values to one or two scales of their block, with a sign.

    Returns:
        What they become, their levels, and the bits of each block's scale.
    """
    magnitude_bits = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    finite = magnitude_bits < INFINITE
    magnitudes = tl.where(finite, tl.abs(values), 0.0)
    bits = scale_bits(magnitudes, there)
    scale = (bits << 16).to(tl.float32, bitcast=True)[:, None]
    times = multiples(magnitudes, scale)
    rounded = tl.where(values < 0, -scale, scale) * times + 0.0  # no -0.0
    least = tl.min(tl.where(there, times, 2.0), axis=1)  # what is written is the least magnitude that a block has
    bits = bf16_bits((bits << 16).to(tl.float32, bitcast=True) * least, False)
    levels = (rounded < 0).to(tl.int32) | tl.where(times > least[:, None], 2, 0)

    broken = tl.max((there & (finite == 0)).to(tl.int32), axis=1)
    is_nan = magnitude_bits > INFINITE
    signals = tl.where(is_nan, 3, tl.where(finite, 0, tl.where(values > 0, 1, 2)))
    rounded = tl.where((broken[:, None] == 1) & finite, 0.0, tl.where(broken[:, None] == 1, values, rounded))
    return rounded, tl.where(broken[:, None] == 1, signals, levels), tl.where(broken == 1, BROKEN, bits)


@triton.jit
def pack_blocks(row, indices, chosen, values, blocks, end_block, k, offsets_at, values_at, BITS: tl.constexpr):
    """Write some blocks to a row; what that rounds off goes back to where the values stood."""
    of_block = (blocks < end_block)[:, None]
    pair = tl.arange(0, BLOCK // 2)[None, :]
    even = blocks[:, None] * BLOCK + 2 * pair
    one = tl.load(indices + even, mask=of_block & (even < k), other=0, cache_modifier=".cg")
    two = tl.load(indices + even + 1, mask=of_block & (even + 1 < k), other=0, cache_modifier=".cg")
    offset_at = offsets_at + blocks[:, None] * (BLOCK * 3 // 2) + 3 * pair
    store_12(row, offset_at, one & 0xFFF, two & 0xFFF, of_block, values_at)

    entry = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    there = of_block & (entry < k)
    index = tl.load(indices + entry, mask=there, other=0, cache_modifier=".cg")
    value = tl.load(chosen + entry, mask=there, other=0.0, cache_modifier=".cg")
    if BITS == 16:
        bits = bf16_bits(value, True)
        store_16(row, values_at + 2 * entry, bits, there)
        rounded = (bits << 16).to(tl.float32, bitcast=True)
    else:
        rounded, levels, scales = in_two_bits(value, there)
        levels = tl.where(there, levels, 0)
        place = tl.arange(0, BLOCK)[None, :]
        fours = tl.reshape(levels << (2 * (place % 4)), [blocks.shape[0], BLOCK // 4, 4])
        at = blocks[:, None] * (BLOCK // 4) + tl.arange(0, BLOCK // 4)[None, :]
        level_bytes = (k + 3) // 4
        tl.store(row + values_at + at, tl.sum(fours, axis=2).to(tl.uint8), mask=of_block & (at < level_bytes))
        store_16(row, values_at + level_bytes + 2 * blocks, scales, blocks < end_block)
    error = value - rounded
    tl.store(values + index, tl.where(error == 0, 0.0, error), mask=there)


@triton.jit
def pack(
    row,
    indices,
    chosen,
    values,
    arrived,
    first,
    count,
    k,
    offsets_at,
    values_at,
    BITS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Pack the blocks of which this program, with ``count`` entries from ``first`` on, has written the last entry."""
    start, end = blocks_to_pack(arrived, first, first + count, k)
    for block in range(start, end, BLOCKS):
        blocks = block + tl.arange(0, BLOCKS)
        pack_blocks(row, indices, chosen, values, blocks, end, k, offsets_at, values_at, BITS)
