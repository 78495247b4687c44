"""Entries <-> rows of bytes: the only file here that calls the codec, and how entries are cut, rounded and summed."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank import codec, ops
from gaussiank.codec import SharedDraw, Wire
from gaussiank.comm import Communicator, Work
from gaussiank.cost import TRAILER_BYTES
from gaussiank.sparse import SparseGradient

_TRAILER = torch.int64
_SPREAD_BYTES = 4  # on top of the spread, so that small frames have some too
_NARROWER = 0.98  # of the room's share, so that a second cut is rarely needed
assert _TRAILER.itemsize == TRAILER_BYTES

EXACT = Wire("raw", "fp32")
"""The wire that loses nothing and needs no decoder."""


class Quantized(NamedTuple):
    """Entries that are sent, and what they lose by it.

    Attributes:
        sparse: which ones.
        error: ``[kept]`` what was rounded off each value, or None when the wire is exact.
    """

    sparse: SparseGradient
    error: Tensor | None = None

    def errors(self, entered: Tensor | None = None) -> tuple[SparseGradient, ...]:
        """Return what the residual gets back of the entries that a bool ``[kept]`` mask marks; None marks all."""
        if self.error is None:
            return ()
        error = SparseGradient(self.sparse.indices, self.error, self.sparse.numel)
        return (error if entered is None else pick(error, entered),)


def quantize(sparse: SparseGradient, wire: Wire, generator: torch.Generator | None = None) -> Quantized:
    """Round values to those that the wire carries: of exactly the entries that one message holds.

    It is done here and not before, because codes of a few bits have a scale for each block of entries: rounded before
    they are cut, entries would no longer fit the blocks of their message.

    Args:
        sparse: all that a message will hold.
        wire: how it travels.
        generator: source of stochastic rounding; workers with the same round alike.

    Example:
        >>> sparse = SparseGradient(torch.tensor([4], dtype=torch.int32), torch.tensor([0.1]), 9)
        >>> quantized = quantize(sparse, Wire("rice", "bf16"))
        >>> bool(quantized.sparse.values + quantized.error == sparse.values), quantize(sparse, EXACT).error
        (True, None)
    """
    if wire.exact:
        return Quantized(sparse)
    values = wire.round(sparse.values, generator)
    return Quantized(SparseGradient(sparse.indices, values, sparse.numel), sparse.values - values)


def row_bytes(
    room: int, numel: int, wire: Wire, dtype: torch.dtype = torch.float32, *, with_trailer: bool = False
) -> int:
    """Return the length of a row with room for so many entries, wherever they lie.

    Example:
        >>> row_bytes(100, 10**6, EXACT) - row_bytes(0, 10**6, EXACT), row_bytes(100, 10**6, Wire())
        (800, 422)
    """
    return wire.max_bytes(room, numel, dtype) + (TRAILER_BYTES if with_trailer else 0)


def pack(sparse: SparseGradient, wire: Wire, room: int | None, trailer: int | None = None, length: int = 0) -> Tensor:
    """Encode entries and, behind them, a number of the caller's.

    Args:
        sparse: at most ``room`` entries, rounded.
        wire: how they travel.
        room: entries that the row has room for, the same on every worker; None for no more than there are.
        trailer: any int64, or None to leave it out.
        length: least length of the row without the trailer.

    Returns:
        uint8 ``[row_bytes(room, numel, wire)]``, or more to fill ``length``.

    Raises:
        ValueError: more entries than room.
    """
    return filled(wire.encode(sparse, capacity=room), length, trailer)


def filled(payload: Tensor, length: int = 0, trailer: int | None = None) -> Tensor:
    """Append zeros up to ``length``, then a number of the caller's."""
    unused = max(0, length - payload.numel())
    if trailer is None and not unused:
        return payload
    pieces = [payload, payload.new_zeros(unused)]
    if trailer is not None:
        pieces.append(
            torch.tensor([trailer], dtype=_TRAILER, device="cpu")
            .view(torch.uint8)
            .to(payload.device, non_blocking=True)
        )
    return torch.cat(pieces)


def quantize_and_pack(
    sparse: SparseGradient,
    wire: Wire,
    room: int | None,
    generator: torch.Generator | None = None,
    trailer: int | None = None,
    length: int = 0,
    shared: SharedDraw | None = None,
) -> tuple[Tensor, Quantized]:
    """Do ``quantize``, then ``pack``, at once and in less time. The entries that it returns are not rounded."""
    packed = wire.pack(sparse, capacity=room, generator=generator, shared=shared)
    return filled(packed.row, length, trailer), Quantized(sparse, packed.error)


def pack_within(
    sparse: SparseGradient, wire: Wire, frame: int, generator: torch.Generator | None = None
) -> tuple[Tensor, int, Quantized, Tensor | None]:
    """Quantize and pack into a frame, without the smallest entries where all do not fit.

    Returns:
        The row, ``frame`` bytes and in 8 more the size that all entries would have taken; that size; what was sent; and
        a bool ``[kept]`` mask of the entries that are in, None when all are.

    Example:
        >>> sparse = SparseGradient(torch.arange(9).int(), torch.arange(9.0), 9)
        >>> row, wanted, quantized, mask = pack_within(sparse, EXACT, EXACT.max_bytes(7, 9))
        >>> row.numel(), wanted, quantized.sparse.values.tolist()
        (84, 92, [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    """
    packed, sent, mask = wire.pack(sparse, frame=frame, generator=generator), sparse, None
    wanted, room = packed.size, sparse.kept
    while packed.size > frame:
        room = min(room - 1, int(room * frame / packed.size * _NARROWER))
        mask = largest_mask(sparse, room)
        sent = pick(sparse, mask)
        if generator is not None:
            generator.manual_seed(generator.initial_seed())  # every attempt draws the same
        packed = wire.pack(sent, frame=frame, generator=generator)
    row = packed.row if mask is None else filled(packed.row[:frame], trailer=wanted)
    return row, wanted, Quantized(sent, packed.error), mask


def frame_for(largest: int, spread: float, most: int) -> int:
    """Return the length of a frame for payloads whose predecessors took at most ``largest``."""
    return min(most, math.ceil(largest * spread) + _SPREAD_BYTES)


def unpack(
    rows: Sequence[Tensor] | Tensor, wire: Wire, numels: Sequence[int], dtype: torch.dtype, room: int | None
) -> list[SparseGradient]:
    """Decode rows. On an accelerator it reads all counts at once, one synchronisation.

    Args:
        rows: uint8 rows as ``pack`` makes them.
        wire: how they travelled.
        numels: length of the vector that each row is a part of.
        dtype: dtype of the values.
        room: what ``pack`` was given.
    """
    parts = [wire.decode(row, numel, dtype=dtype, capacity=room) for row, numel in zip(rows, numels, strict=True)]
    if not parts or parts[0].indices.device.type == "cpu":
        return parts
    # on an accelerator unused room comes back as zeros at the last index, which would look like an entry
    return [
        SparseGradient(part.indices[:kept], part.values[:kept], part.numel)
        for part, kept in zip(parts, codec.counts(rows), strict=True)
    ]


def trailers(rows: Sequence[Tensor] | Tensor) -> list[int]:
    """Read the numbers behind the entries of rows; one synchronisation on an accelerator."""
    ends = torch.stack([row[-TRAILER_BYTES:] for row in rows])
    read: list[int] = ends.view(_TRAILER).flatten().tolist()
    return read


def agree_on(comm: Communicator, number: int, device: torch.device) -> Generator[Work[Any], Any, int]:
    """Ask for the largest of all workers' numbers: one short message."""
    largest = torch.tensor([number], dtype=torch.int64, device=device)
    return int((yield comm.all_reduce(largest, dist.ReduceOp.MAX)))


def agree_on_capacity(comm: Communicator, sparse: SparseGradient) -> Generator[Work[Any], Any, int]:
    """Ask for the largest count on any worker: one short message."""
    return (yield from agree_on(comm, sparse.kept, sparse.indices.device))


def pick(sparse: SparseGradient, mask: Tensor) -> SparseGradient:
    """Return the entries where a bool ``[kept]`` mask is set."""
    return SparseGradient(sparse.indices[mask], sparse.values[mask], sparse.numel)


def largest_mask(sparse: SparseGradient, room: int) -> Tensor:
    """Mark the ``room`` entries of largest magnitude, infinities and NaN first; all when there is room for all.

    Example:
        >>> sparse = SparseGradient(torch.tensor([1, 4, 6], dtype=torch.int32), torch.tensor([2.0, -3.0, 1.0]), 9)
        >>> largest_mask(sparse, 2)
        tensor([ True,  True, False])
    """
    if sparse.kept <= room:
        return torch.ones_like(sparse.indices, dtype=torch.bool)
    mask = torch.zeros_like(sparse.indices, dtype=torch.bool)
    if room:
        mask[ops.select_topk(sparse.values.contiguous(), room)] = True
    return mask


def merge(parts: Sequence[SparseGradient]) -> SparseGradient:
    """Add sparse vectors up, in the given order: the same bits wherever the same parts are merged.

    Example:
        >>> one = SparseGradient(torch.tensor([0, 2], dtype=torch.int32), torch.tensor([5.0, 7.0]), 4)
        >>> two = SparseGradient(torch.tensor([2, 3], dtype=torch.int32), torch.tensor([1.0, 1.0]), 4)
        >>> merge([one, two]).dense()
        tensor([5., 0., 8., 1.])
    """
    indices, places = torch.unique(torch.cat([part.indices for part in parts]), return_inverse=True)
    values = parts[0].values.new_zeros(indices.numel())
    start = 0
    for part in parts:  # no index repeats within a part, so the order of additions is fixed on every device
        values.index_add_(0, places[start : start + part.kept], part.values)
        start += part.kept
    return SparseGradient(indices, values, parts[0].numel)


def at_drawn(sparse: SparseGradient, indices: Tensor) -> SparseGradient:
    """Move entries to the indices that all workers drew; there they are already, unless they are not finite.

    Infinities and NaN are sent instead of what was drawn. Each goes to the next index that was, so that every worker
    sees that there are some, and about where.

    Example:
        >>> bad = SparseGradient(torch.tensor([4], dtype=torch.int32), torch.tensor([torch.inf]), 9)
        >>> at_drawn(bad, torch.tensor([1, 5, 7], dtype=torch.int32)).dense()
        tensor([0., 0., 0., 0., 0., inf, 0., 0., 0.])
    """
    if torch.equal(sparse.indices, indices):
        return sparse
    values = sparse.values.new_zeros(indices.numel())
    values[torch.searchsorted(indices, sparse.indices).clamp_(max=indices.numel() - 1)] = sparse.values
    return SparseGradient(indices, values, sparse.numel)


def member_mask(indices: Tensor, among: Tensor) -> Tensor:
    """Mark which of ascending ``indices`` are ``among`` other ascending ones.

    Example:
        >>> member_mask(torch.tensor([1, 4, 6]), among=torch.tensor([0, 1, 6, 7]))
        tensor([ True, False,  True])
    """
    if not among.numel():
        return torch.zeros_like(indices, dtype=torch.bool)
    places = torch.searchsorted(among, indices).clamp_(max=among.numel() - 1)
    return among[places] == indices


def rest_of(sparse: SparseGradient, entered: Tensor) -> SparseGradient | None:
    """Return the entries that did not enter, None when all did; ``entered`` is a bool ``[kept]`` mask."""
    return None if bool(entered.all()) else pick(sparse, ~entered)


def summed_mean(total: SparseGradient, world_size: int, out: Tensor) -> Tensor:
    """Write a sum over workers, divided by their number, to ``out``; tells whether it is finite, as a 0-d tensor."""
    mean = total.values / world_size
    return ops.scatter_mean([SparseGradient(total.indices, mean, total.numel)], out)
