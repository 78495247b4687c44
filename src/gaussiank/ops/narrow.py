"""Residuals of 16 bits: added to a gradient, and rounded at random so that nothing is lost on average.

A float32 lies between two neighbours in bfloat16. It is rounded to the farther one of zero with the probability that
makes the expectation the number itself: 16 random bits are added below the bits that stay, and the carry decides.
Everything goes piece by piece, because a temporary as long as the vector would cost what the 16 bits save.

Source: Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", section 3 (stochastic rounding). Differs:
one table of random bits, shifted by a random number for each piece and turn, in place of fresh bits for each entry.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

_PIECE = {"cpu": 1 << 14}  # entries: 64 kB stay in a core's cache
_PIECE_ELSEWHERE = 1 << 22  # as few launches as a few megabytes allow
_LOW, _HIGH = 0xFFFF, -0x10000  # bits that bfloat16 lacks, and those that it has


def add_narrow(vector: Tensor, residual: Tensor, factor: float = 1.0) -> Tensor:
    """Add a residual of 16 bits to a vector in place, in the vector's dtype.

    Args:
        vector: float ``[numel]``.
        residual: bfloat16 ``[numel]``. Not modified.
        factor: what the residual is multiplied by.

    Returns:
        ``vector``.

    Example:
        >>> add_narrow(torch.ones(2), torch.ones(2, dtype=torch.bfloat16), 0.5)
        tensor([1.5000, 1.5000])
    """
    for place, _ in _pieces(vector):
        vector[place].add_(residual[place], alpha=factor)
    return vector


def round_randomly(vector: Tensor, out: Tensor, turn: int) -> Tensor:
    """Write a vector to a narrower one, each entry rounded up or down at random: its expectation stays.

    Args:
        vector: float ``[numel]``. Not modified.
        out: bfloat16 ``[numel]``.
        turn: the same gives the same bits.

    Returns:
        ``out``.

    Example:
        >>> out = torch.empty(10000, dtype=torch.bfloat16)
        >>> round(float(round_randomly(torch.full((10000,), 1.001), out, turn=0).float().mean()), 3)
        1.001
    """
    table = _table(vector.device)
    for place, number in _pieces(vector):
        piece = vector[place].float()
        bits = torch.add(table[: piece.numel()], zlib.crc32(f"{turn} {number}".encode()) & _LOW)
        bits.bitwise_and_(_LOW).add_(piece.view(torch.int32)).bitwise_and_(_HIGH)
        out[place].copy_(bits.view(torch.float32))
    return out


def add_randomly(residual: Tensor, rest: Tensor, turn: int) -> None:
    """Add a vector to a residual of 16 bits in place, rounded as by ``round_randomly``.

    Args:
        residual: bfloat16 ``[numel]``.
        rest: float ``[numel]``. Not modified.
        turn: the same gives the same bits.
    """
    for place, number in _pieces(rest):
        total = rest[place] + residual[place]
        round_randomly(total, residual[place], zlib.crc32(f"{turn} {number}".encode()))


def _pieces(vector: Tensor) -> Iterator[tuple[slice, int]]:
    size = _PIECE.get(vector.device.type, _PIECE_ELSEWHERE)
    for number, start in enumerate(range(0, vector.numel(), size)):
        yield slice(start, start + size), number


@functools.cache
def _table(device: torch.device) -> Tensor:
    """Return random int32 from 0 to 65535, as many as a piece has entries; the same on every device."""
    size = _PIECE.get(device.type, _PIECE_ELSEWHERE)
    generator = torch.Generator(device="cpu").manual_seed(16)
    return torch.randint(_LOW + 1, (size,), generator=generator, dtype=torch.int32, device="cpu").to(device)
