"""All-gather: every worker gets every payload and adds them up in rank order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank import codec
from gaussiank.sparse import SparseGradient

from .collective import Call, Collective, Outcome, Program, Traffic
from .rows import gathered_mean, largest_mask, pack, pick, rest_of, unpack

_SPARE = 16  # entries on top of the slack, so that small counts have some too


@dataclass(frozen=True)
class AllGather(Collective):
    """Send each worker's payload to all others; traffic grows with the number of workers.

    Counts may differ between workers, and be zero: payloads are padded to the capacity. Where that is not known
    beforehand, room is made for ``slack`` times the last step's largest count, which travels along; what a worker has
    beyond that goes back to its residual, smallest entries first. Only the first exchange asks for the largest count.

    Args:
        slack: room over the last largest count, at least 1; a larger one pads more and delays less.
        ask: ask for the largest count every time, one more short message that ``start`` waits for; nothing comes back.

    Source: the aggregation of the paper, step 1 of its algorithm.
    Differs: the published code cuts the gathered entries into equal slices and drops repeated indices; here each
    worker's entries are added in rank order, so nothing is dropped and all workers get the same bits.
    """

    slack: float = 1.25
    ask: bool = False

    def __post_init__(self) -> None:
        if not self.slack >= 1:
            raise ValueError(f"slack must be at least 1, got {self.slack}. 1.25 leaves room for a quarter more.")

    @property
    def phased(self) -> bool:
        """One message."""
        return False

    def rejects(self, *, bounded: bool) -> bool:
        """Only when a count outgrows the room that its predecessor suggested."""
        return not bounded and not self.ask

    def traffic(self, numel: int, k: int, world_size: int, value_bytes: int = 4) -> Traffic:
        """Everyone's k entries go to everyone else."""
        sent_bytes = (world_size - 1) * codec.payload_bytes(k, value_bytes)
        return Traffic(world_size - 1, sent_bytes, world_size * k)

    def program(self, sparse: SparseGradient, call: Call) -> Program:
        """Send the payload to all."""
        if call.capacity is not None:
            return self._exactly(sparse, call, call.capacity)
        if call.hint is None or self.ask:
            return self._within(sparse, call, self._largest(sparse, call))
        return self._within(sparse, call, math.ceil(int(call.hint) * self.slack) + _SPARE)

    def _exactly(self, sparse: SparseGradient, call: Call, capacity: int) -> Program:
        rows = yield call.line.all_gather(codec.encode(sparse, capacity))

        def finish(out: Tensor) -> Outcome:
            return Outcome(gathered_mean([codec.decode(row, sparse.numel, sparse.values.dtype) for row in rows], out))

        return finish

    def _within(self, sparse: SparseGradient, call: Call, room: int) -> Program:
        entered = largest_mask(sparse, room)
        sent = sparse if sparse.kept <= room else pick(sparse, entered)
        rows = yield call.line.all_gather(pack(sent, room, note=sparse.kept))

        def finish(out: Tensor) -> Outcome:
            parts, counts = unpack(rows, [sparse.numel] * len(rows), sparse.values.dtype)
            return Outcome(gathered_mean(parts, out), rest_of(sparse, entered), torch.tensor(max(counts)))

        return finish

    def _largest(self, sparse: SparseGradient, call: Call) -> int:
        largest = torch.tensor([sparse.kept], dtype=torch.int64, device=sparse.indices.device)
        return int(call.line.all_reduce(largest, dist.ReduceOp.MAX).wait())
