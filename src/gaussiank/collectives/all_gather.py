"""All-gather: every worker gets every payload and adds them up in rank order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank.codec import Wire
from gaussiank.sparse import SparseGradient

from .collective import Call, Collective, Outcome, Program, Traffic
from .rows import (
    EXACT,
    Given,
    filled,
    gathered_mean,
    largest_mask,
    notes,
    pack_rounded,
    pick,
    rest_of,
    row_bytes,
    unpack,
)

_SPARE_BYTES = 64  # on top of the slack, so that small messages have some too
_NARROWER = 0.98  # of the room's share, so that a second cut is rarely needed


@dataclass(frozen=True)
class AllGather(Collective):
    """Send each worker's payload to all others; traffic grows with the number of workers.

    Counts may differ between workers, and be zero: all rows have one length. When the count is known beforehand and
    decides the size, it is that size. Otherwise room is made for what the largest payload of the last step took, which
    travels along, and some more: real selections cluster, so that they take less than the most that their count can.
    What does not fit goes back to the residual, smallest entries first. Without a residual there is room for the most
    that the count can take. Only the first exchange asks for the largest payload, where no count bounds it.

    Args:
        slack: room over the last largest payload where nothing bounds the count, at least 1; a larger one pads more and
            delays less.
        spread: the same where the count is known, and only the places of the entries are not.
        ask: ask for the largest payload every time, one more short message that ``start`` waits for; nothing comes
            back.

    Source: the aggregation of the paper, step 1 of its algorithm.
    Differs: the published code cuts the gathered entries into equal slices and drops repeated indices; here each
    worker's entries are added in rank order, so nothing is dropped and all workers get the same bits.
    """

    slack: float = 1.25
    spread: float = 1.03
    ask: bool = False

    def __post_init__(self) -> None:
        for argument in ("slack", "spread"):
            if not getattr(self, argument) >= 1:
                raise ValueError(f"{argument} must be at least 1, got {getattr(self, argument)}. 1.25 adds a quarter.")

    @property
    def phased(self) -> bool:
        """One message."""
        return False

    def rejects(self, *, bounded: bool) -> bool:
        """Only when a payload outgrows the room that its predecessor suggested."""
        return not bounded and not self.ask

    def traffic(self, numel: int, k: int, world_size: int, wire: Wire = EXACT) -> Traffic:
        """Everyone's k entries go to everyone else."""
        row = row_bytes(k, numel, wire, noted=wire.varies)
        return Traffic(world_size - 1, (world_size - 1) * row, world_size * k)

    def program(self, sparse: SparseGradient, call: Call) -> Program:
        """Send the payload to all."""
        if call.capacity is not None and (not call.wire.varies or call.draw is None):
            return self._exactly(sparse, call, call.capacity)
        return self._within(sparse, call)

    def _exactly(self, sparse: SparseGradient, call: Call, capacity: int) -> Program:
        row, given = pack_rounded(sparse, call.wire, capacity, call.seed(call.line.rank))
        rows = yield call.line.all_gather(row)

        def finish(out: Tensor) -> Outcome:
            parts = [call.wire.decode(row, sparse.numel, dtype=sparse.values.dtype, capacity=capacity) for row in rows]
            return Outcome(gathered_mean(parts, out), rounded_off=given.errors())

        return finish

    def _within(self, sparse: SparseGradient, call: Call) -> Program:
        payload, given = pack_rounded(sparse, call.wire, None, call.seed(call.line.rank))
        wanted = payload.numel()
        length = self._length(wanted, sparse, call)
        mask = None
        if wanted > length:
            mask, given, payload = _cut(sparse, call, length, length / wanted)
        rows = yield call.line.all_gather(filled(payload, length, wanted))

        def finish(out: Tensor) -> Outcome:
            parts = unpack(rows, call.wire, [sparse.numel] * len(rows), sparse.values.dtype, None)
            hint = torch.tensor([max(notes(rows)), -1 if call.capacity is None else call.capacity])
            rejected = None if mask is None else rest_of(sparse, mask)
            return Outcome(gathered_mean(parts, out), rejected, given.errors(), hint)

        return finish

    def _length(self, wanted: int, sparse: SparseGradient, call: Call) -> int:
        """Return the length of all rows without their notes, the same on every worker."""
        if call.capacity is None:
            if call.hint is None or call.hint.numel() != 2 or self.ask:
                largest = torch.tensor([wanted], dtype=torch.int64, device=sparse.indices.device)
                return int(call.line.all_reduce(largest, dist.ReduceOp.MAX).wait())
            return math.ceil(int(call.hint[0]) * self.slack) + _SPARE_BYTES
        most = call.wire.max_bytes(call.capacity, sparse.numel, sparse.values.dtype)
        if call.hint is None or call.hint.numel() != 2 or int(call.hint[1]) != call.capacity:
            return most
        return min(most, math.ceil(int(call.hint[0]) * self.spread) + _SPARE_BYTES)


def _cut(sparse: SparseGradient, call: Call, length: int, share: float) -> tuple[Tensor, Given, Tensor]:
    """Leave out the smallest entries until the payload fits; returns which are in, their rounding, and the payload."""
    room = sparse.kept
    while True:
        room = min(room - 1, int(room * share * _NARROWER))
        mask = largest_mask(sparse, room)
        payload, given = pack_rounded(pick(sparse, mask), call.wire, None, call.seed(call.line.rank))
        if payload.numel() <= length:
            return mask, given, payload
        share = length / payload.numel()
