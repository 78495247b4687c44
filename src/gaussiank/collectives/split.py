"""Split: each worker owns a region of the vector, sums what all send of it, and sends the sum to all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gaussiank import cost, ops
from gaussiank.codec import Wire
from gaussiank.cost import TRAILER_BYTES, Cost, Load
from gaussiank.sparse import SparseGradient

from .base import Collective, ExchangeContext, Outcome, Program
from .packing import (
    Quantized,
    agree_on,
    agree_on_capacity,
    filled,
    frame_for,
    largest_mask,
    member_mask,
    merge,
    pack_within,
    pick,
    quantize_and_pack,
    rest_of,
    row_bytes,
    trailers,
    unpack,
)

_SPREAD = 1.02
_BITS = 32
_MOST = 2**31 - 1


class RegionRow(NamedTuple):
    """A row, what it holds, and a bool ``[kept]`` mask of the entries that found room in it, None when all did."""

    bytes: Tensor
    quantized: Quantized
    mask: Tensor | None = None


@dataclass(frozen=True)
class Frames:
    """Pack entries into rows of known length.

    Where the wire's payloads differ in size, that is what the largest one of the last exchange took, and 2 % more: each
    row's size travels with it. The smallest entries of a payload that outgrows its frame are left out.

    Args:
        room: entries that each row has room for; None: rows are as long as they have to be.
        length: bytes of a row without its trailer.
        follow: whether that is what the last exchange took; otherwise it holds any entries, as many as ``room``.
    """

    room: int | None
    length: int = 0
    follow: bool = False

    @classmethod
    def after(cls, context: ExchangeContext, room: int | None, most: int) -> Frames:
        """Return frames of ``most`` bytes, or of what the hint of the last exchange tells of rows with such a room."""
        if room is None or not context.wire.varies:
            return cls(room, most)
        hint, place = context.hint, context.comm.world_size + 1
        if hint is not None and hint.numel() == place + 2 and int(hint[place]) == room:
            most = frame_for(int(hint[place + 1]), _SPREAD, most)
        return cls(room, most, follow=True)

    def pack(
        self, sparse: SparseGradient, context: ExchangeContext, region: int, load: int, size: int = 0
    ) -> RegionRow:
        """Round and pack, with a trailer behind the entries.

        Args:
            sparse: entries of one region.
            context: of the exchange.
            region: which one; the number of workers for sums.
            load: entries that there were, or have come, of the region.
            size: the largest payload seen so far, in bytes; the trailer has the larger of that and this one.
        """
        generator = context.generator(sparse.values.device, region)
        if not self.follow:
            row, quantized = quantize_and_pack(sparse, context.wire, self.room, generator, load, self.length)
            return RegionRow(row, quantized)
        row, own, quantized, mask = pack_within(sparse, context.wire, self.length, generator)
        trailer = min(load, _MOST) | min(max(own, size), _MOST) << _BITS
        return RegionRow(filled(row[: self.length], trailer=trailer), quantized, mask)

    @staticmethod
    def without_cut(sent: Tensor, rows: Sequence[RegionRow], parts: Sequence[SparseGradient]) -> Tensor:
        """Take what found no room out of a bool ``[kept]`` mask of all that the parts hold, in their order."""
        if all(row.mask is None for row in rows):
            return sent
        masks = [torch.ones_like(part.indices, dtype=torch.bool) if row.mask is None else row.mask
                 for row, part in zip(rows, parts, strict=True)]  # fmt: skip
        left = sent.clone()
        left[sent] = torch.cat(masks)
        return left

    def read_trailers(self, rows: Sequence[Tensor] | Tensor) -> tuple[list[int], int]:
        """Read the loads behind rows, and the largest size, 0 where it is not followed."""
        read = trailers(rows)
        if not self.follow:
            return read, 0
        return [note & _MOST for note in read], max(note >> _BITS for note in read)

    def hint(self, borders: Tensor, size: int, finite: Tensor) -> Tensor | None:
        """Append the size to the borders; None where what infinities and NaN took says nothing of the next exchange."""
        if not self.follow:
            return borders
        return torch.cat([borders, torch.tensor([self.room, size], device="cpu")]) if bool(finite) else None


@dataclass(frozen=True)
class Split(Collective):
    """Exchange regions, sum each at its owner, and gather the sums: traffic does not grow with the workers.

    Every worker sends ``slack * k / (P - 1)`` entries to each owner and, as an owner, as many of its region's sums to
    each worker: ``2 * slack * k`` entries in all, whatever P is. What does not fit goes back to the residuals of those
    who sent it, smallest magnitudes first; each worker sees in the result which of its entries entered, so nothing
    more has to be sent for that. Entries are rounded to the wire as they leave, and sums once more by their owner, who
    keeps what it rounded off: so both phases are compact, and nothing is lost over all workers. Borders move so that
    every region holds the same load as at the last step. With a wire whose size varies, rows of the trimmed form
    take what the largest one of the last step took and 2 % more; what outgrows them goes back too.

    Args:
        trim: keep messages at that size. Otherwise nothing comes back: sizes are exchanged first, two more short
            messages, and the second phase sends all sums, up to P times as many.
        slack: room in a message of the trimmed form; a larger one sends more and delays less.
        rebalance: move the borders; otherwise regions have equal lengths.

    Source: Li & Hoefler 2022, "Near-Optimal Sparse Allreduce for Distributed Deep Learning" (Ok-Topk), section 3.
    Differs: messages have one fixed size, so that no sizes are exchanged; the sums kept are the largest of each
    region, not those above a global threshold; borders follow the load of the last step, at every step.
    """

    trim: bool = True
    slack: float = 1.0
    rebalance: bool = True

    def __post_init__(self) -> None:
        if not self.slack > 0:
            raise ValueError(f"slack must be above 0, got {self.slack}. 1 sends as many sums as entries.")

    def rejects(self, *, bounded: bool) -> bool:
        """Only the lossless form returns nothing."""
        return self.trim

    def cost(self, load: Load, world_size: int) -> Cost:
        """The lossless form is taken with the sums of the union."""
        if self.trim:
            return cost.split(load, world_size, self.slack)
        return cost.split_untrimmed(load, world_size)

    def message_bytes(self, k: int, numel: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
        """The lossless form sends an owner's sums, which may be all entries of all workers."""
        room = self._room(k, world_size) if self.trim else min(numel, world_size * k)
        return row_bytes(room, numel, wire, dtype, with_trailer=True)

    def program(self, sparse: SparseGradient, context: ExchangeContext) -> Program:
        """Send each owner its region, then everyone the own region's sum.

        1. *Cut* the entries at the borders, the largest of each region, and pack a row for each owner.
        2. *Exchange* the rows: one all-to-all of equal rows or, untrimmed, one of sizes and one of rows.
        3. *Sum* what came of the own region, in rank order; keep the largest sums, and round them once more.
        4. *Gather* the sums; untrimmed, the longest row is asked for first.
        5. *Place*: each region's sums go to where it begins. What was sent and is not among them comes back, with what
           was rounded off the rest and off the own sums; the regions' loads say where the borders lie next time.
        """
        comm, wire, dtype = context.comm, context.wire, sparse.values.dtype
        borders = self._borders(context.hint, sparse.numel, comm.world_size)
        widths = [max(1, high - low) for low, high in itertools.pairwise(borders)]
        room: int | None = None
        if self.trim:
            capacity = context.capacity
            if capacity is None:
                capacity = yield from agree_on_capacity(comm, sparse)
            room = self._room(capacity, comm.world_size)
        parts, wanted, sent = _cut(sparse, borders, room)
        most = 0 if room is None else wire.max_bytes(room, max(widths), dtype)
        frames = Frames.after(context, room, most)
        packed = [
            frames.pack(part, context, region, load)
            for region, (part, load) in enumerate(zip(parts, wanted, strict=True))
        ]
        rows, quantized = [row.bytes for row in packed], [row.quantized for row in packed]
        sent = frames.without_cut(sent, packed, parts)
        if self.trim:
            received: Sequence[Tensor] | Tensor = yield comm.all_to_all(torch.stack(rows))
        else:
            sizes = torch.tensor([[row.numel()] for row in rows], device="cpu").to(sparse.indices.device)
            arriving = yield comm.all_to_all(sizes)
            received = yield comm.all_to_all_uneven(rows, arriving.flatten().tolist())
        total = merge(unpack(received, wire, [widths[comm.rank]] * comm.world_size, dtype, room))
        if room is not None:
            total = pick(total, largest_mask(total, room))
        loads, size = frames.read_trailers(received)
        own = frames.pack(total, context, comm.world_size, sum(loads), size)
        row = own.bytes
        if room is None:
            length = yield from agree_on(comm, row.numel() - TRAILER_BYTES, row.device)
            row = filled(row[:-TRAILER_BYTES], length, trailer=sum(loads))
        gathered = yield comm.all_gather(row)

        out = yield None
        regions = [
            shifted(part, low, sparse.numel)
            for part, low in zip(unpack(gathered, wire, widths, dtype, room), borders, strict=False)
        ]
        finite = ops.scatter_mean(regions, out)  # a region for each worker: divided by their number, the mean
        indices = torch.cat([region.indices for region in regions])
        entered = sent & member_mask(sparse.indices, indices) if self.trim else sent
        errors = _errors(quantized, own.quantized, sent, entered, borders, comm.rank, sparse)
        loads, size = frames.read_trailers(gathered)
        hint = frames.hint(self._moved(borders, regions, loads), size, finite)
        yield Outcome(finite, rest_of(sparse, entered), errors, context.hint if hint is None else hint)

    def _moved(self, borders: Sequence[int], regions: Sequence[SparseGradient], loads: Sequence[int]) -> Tensor:
        return (
            _rebalanced(borders, [region.indices for region in regions], loads)
            if self.rebalance
            else torch.tensor(borders, device="cpu")
        )

    def _room(self, capacity: int, world_size: int) -> int:
        return int(cost.region_room(capacity, world_size, self.slack))

    def _borders(self, hint: Tensor | None, numel: int, world_size: int) -> list[int]:
        if self.rebalance and hint is not None and hint.numel() > world_size and int(hint[world_size]) == numel:
            return [int(border) for border in hint[: world_size + 1]]
        return [numel * region // world_size for region in range(world_size + 1)]


def shifted(part: SparseGradient, low: int, numel: int) -> SparseGradient:
    """Move the entries of a region to where they stand in the vector of ``numel``."""
    return SparseGradient(part.indices + low, part.values, numel)


def _errors(
    quantized: Sequence[Quantized],
    owned: Quantized,
    sent: Tensor,
    entered: Tensor,
    borders: Sequence[int],
    rank: int,
    sparse: SparseGradient,
) -> tuple[SparseGradient, ...]:
    """Return what was rounded off: of this worker's entries that entered, and of the sums that it owns."""
    if owned.error is None:
        return ()
    error = torch.cat([part.error for part in quantized if part.error is not None])
    inside = entered[sent]
    own = SparseGradient(sparse.indices[entered], error[inside], sparse.numel)
    return own, *(shifted(part, borders[rank], sparse.numel) for part in owned.errors())


def _cut(
    sparse: SparseGradient, borders: Sequence[int], room: int | None
) -> tuple[list[SparseGradient], list[int], Tensor]:
    """Cut entries at the borders, with at most ``room`` in a part, or all.

    Returns:
        The parts, with indices that start at their border; the count that each would have had; which entries are in.
    """
    places = torch.searchsorted(
        sparse.indices, torch.tensor(borders[1:-1], dtype=torch.int32, device=sparse.indices.device)
    )
    ends = [0, *places.tolist(), sparse.kept]
    sent = torch.ones_like(sparse.indices, dtype=torch.bool)
    parts, wanted = [], []
    for region, (start, end) in enumerate(itertools.pairwise(ends)):
        low, high = borders[region], borders[region + 1]
        part = SparseGradient(sparse.indices[start:end] - low, sparse.values[start:end], max(1, high - low))
        wanted.append(part.kept)
        if room is not None and part.kept > room:
            sent[start:end] = largest_mask(part, room)
            part = pick(part, sent[start:end])
        parts.append(part)
    return parts, wanted, sent


def _rebalanced(borders: Sequence[int], indices: Sequence[Tensor], loads: Sequence[int]) -> Tensor:
    """Move the borders to where each region would have held the same load.

    The gathered entries of a region show where in it the load lies. Whole numbers only: every worker must get the
    same borders, whatever its processor.

    Args:
        borders: world_size + 1 of them.
        indices: int32 ``[kept]`` of each region's sums.
        loads: entries that each owner was to get, from all workers.

    Example:
        >>> _rebalanced([0, 4, 8], [torch.arange(4), torch.tensor([6, 7])], [9, 3]).tolist()
        [0, 3, 8]
    """
    weights = [
        torch.full((part.numel(),), (load << 20) // part.numel(), dtype=torch.int64, device="cpu")
        for part, load in zip(indices, loads, strict=True)
        if part.numel()
    ]
    if not weights:
        return torch.tensor(borders, device="cpu")
    everywhere = torch.cat(list(indices)).cpu()
    before = torch.cat(weights).cumsum(0)
    world_size = len(loads)
    targets = torch.tensor([int(before[-1]) * region // world_size for region in range(1, world_size)], device="cpu")
    places = torch.searchsorted(before, targets).clamp_(max=everywhere.numel() - 1)
    inner = (everywhere[places] + 1).tolist() if world_size > 1 else []
    return torch.tensor([borders[0], *inner, borders[-1]], device="cpu")
