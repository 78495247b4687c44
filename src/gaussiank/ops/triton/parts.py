"""What the kernels share: keys that order as magnitudes do, rounding, and the numbers that one take passes on."""

from __future__ import annotations

import triton
import triton.language as tl

# Every kernel is compiled for the types of its arguments alone: what a number is, or where a vector of the caller's
# begins, changes nothing but ALIGNED of ``sweep``. So ``accelerator.compare`` can compile all there is, beforehand.
# Nothing is fused to a multiply-add (``enable_fp_fusion``): the reference rounds twice.

TILE = 2048
"""Entries that one program of ``sweep`` reads; its candidates stand together and in order."""

TILES = 32
"""Tiles of a group: what one program of ``count`` and ``emit`` looks at, 65,536 entries, a chunk of the wire."""

COARSE, FINE = 1 << 15, 1 << 16
"""Bins of the two histograms of keys, of their first 15 bits and of the other 16."""

# what stands in `state`, int32, zero when a take or a mean begins; in that of a take the two histograms follow
HEAD = tl.constexpr(0)  # candidates found
DONE_PICK = tl.constexpr(1)  # programs that have ended
DONE_REFINE = tl.constexpr(2)
DONE_MEAN = tl.constexpr(3)
BAD = tl.constexpr(4)  # whether a mean is infinite or NaN
KTH = tl.constexpr(8)  # key of the k-th entry
TIES = tl.constexpr(9)  # how many of those equal to it are taken
WHOLE = tl.constexpr(10)  # 0: among the candidates; else in the whole vector; 2: its last 16 bits are looked for
PREFIX = tl.constexpr(11)  # its first 15 bits
ZERO = 12  # stays zero: the hint of a take that has none
HISTOGRAMS = tl.constexpr(16)
STATE_NUMEL = 16 + COARSE + FINE
ARRIVED = tl.constexpr(STATE_NUMEL)  # behind them, where a row has blocks: how many entries of each are written

INFINITE = tl.constexpr(0x7F800000)  # the largest key: of infinities and NaN


@triton.jit
def key_of(values):
    """Return magnitudes as integers that order as they do; NaN counts as infinite."""
    return tl.minimum(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, INFINITE)


@triton.jit
def bf16_bits(values, FINITE: tl.constexpr):
    """Round float32 to the bits of bfloat16: to nearest even, one NaN; what is finite stays so, if it shall.

    In integers: Triton's interpreter cuts bits off where compiled code rounds.
    """
    bits = values.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    rounded = (magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16
    if FINITE:
        rounded = tl.where(magnitude == INFINITE, 0x7F80, tl.minimum(rounded, 0x7F7F))
    return tl.where(magnitude > INFINITE, 0x7FC0, rounded | ((bits >> 16) & 0x8000))


@triton.jit
def add_to_histogram(values, state, AT: tl.constexpr, numel, PREFIXED: tl.constexpr, BLOCK: tl.constexpr):
    """Count the keys of a vector that are not zero: by their first 15 bits, or of those with a prefix by the rest."""
    prefix = tl.load(state + PREFIX)
    for block in range(tl.program_id(0), tl.cdiv(numel, BLOCK), tl.num_programs(0)):
        place = block * BLOCK + tl.arange(0, BLOCK)
        key = key_of(tl.load(values + place, mask=place < numel, other=0.0))
        if PREFIXED:
            tl.atomic_add(state + AT + (key & 0xFFFF), 1, mask=(key > 0) & ((key >> 16) == prefix), sem="relaxed")
        else:
            tl.atomic_add(state + AT + (key >> 16), 1, mask=key > 0, sem="relaxed")


@triton.jit
def is_last(state, DONE: tl.constexpr):
    """Tell whether all other programs have ended; what they wrote is there then."""
    tl.debug_barrier()
    return tl.atomic_add(state + DONE, 1, sem="acq_rel") == tl.num_programs(0) - 1


@triton.jit
def bin_of(state, AT: tl.constexpr, BINS: tl.constexpr, k, BLOCK: tl.constexpr):
    """Find the bin of a histogram where the k-th largest is.

    Returns:
        The bin, k less the entries in higher bins, and the entries in all.
    """
    total, found, rest = 0, 0, 0
    for start in range(0, BINS, BLOCK):
        place = BINS - 1 - start - tl.arange(0, BLOCK)
        entries = tl.load(state + AT + place, cache_modifier=".cg")
        above = total + tl.cumsum(entries) - entries
        here = (above < k) & (k <= above + entries)
        found += tl.sum(tl.where(here, place, 0))
        rest += tl.sum(tl.where(here, k - above, 0))
        total += tl.sum(entries)
    return found, rest, total
