"""What a selection becomes on a wire: bits, the values that arrive, and the time to write them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gaussiank.codec import Wire
from gaussiank.sparse import SparseGradient

REPEATS = 3


class Carried(NamedTuple):
    """A selection on its way.

    Attributes:
        bits: of the payload, header included.
        values: ``[kept]`` that arrive: rounded where the wire is narrower than they are.
        encode_us: microseconds of rounding and encoding.
    """

    bits: int
    values: Tensor
    encode_us: float


def carry(sparse: SparseGradient, wire: Wire) -> Carried:
    """Round and encode a selection as a training does.

    Example:
        >>> one = SparseGradient(torch.tensor([7]).int(), torch.tensor([0.1]), numel=1000)
        >>> carried = carry(one, Wire())
        >>> carried.bits, carried.values.tolist()
        (256, [0.10009765625])
    """

    def pack() -> Tensor:
        return wire.pack(sparse, generator=torch.Generator().manual_seed(0)).row  # the same draws every time

    row = pack()
    values = wire.decode(row, sparse.numel, dtype=sparse.values.dtype).values
    return Carried(8 * row.numel(), values, best_us(pack))


def asked_wire(text: str) -> Wire:
    """Make the wire that a user has named.

    Raises:
        ValueError: an unknown name, or ``seed``: vectors that were recorded do not say how indices were drawn.

    Example:
        >>> str(asked_wire("chunks+8bit"))
        'chunks+8bit'
    """
    wire = Wire.parse(text)
    if wire.index == "seed":
        raise ValueError(f"wire must send its indices in a replay, got {wire}. Take rice in place of seed.")
    return wire


def best_us(work: Callable[[], object]) -> float:
    """Return the shortest of a few runs, in microseconds: the rest is the machine's other business."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e6 * min(times)
