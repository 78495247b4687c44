"""All-gather: every worker gets every payload and adds them up in rank order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank import codec, ops
from gaussiank.sparse import SparseGradient

from .collective import Collective, Exchange, Outcome


@dataclass(frozen=True)
class AllGather(Collective):
    """Send each worker's payload to all others; traffic grows with the number of workers.

    Counts may differ between workers, and be zero: payloads are padded to the capacity. Where that is not known
    beforehand, the largest count is asked for first, one more short message that ``start`` waits for.

    Source: the aggregation of the paper, step 1 of its algorithm.
    Differs: the published code cuts the gathered entries into equal slices and drops repeated indices; here each
    worker's entries are added in rank order, so nothing is dropped and all workers get the same bits.
    """

    def start(
        self, sparse: SparseGradient, *, capacity: int | None, group: dist.ProcessGroup | None = None
    ) -> Exchange:
        """Send the payload to all."""
        world_size = dist.get_world_size(group)
        asked_bytes = 0
        if capacity is None:
            largest = torch.tensor([sparse.kept], dtype=torch.int64, device=sparse.indices.device)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
            capacity = int(largest)
            asked_bytes = largest.element_size() * 2 * (world_size - 1) // world_size
        payload = codec.encode(sparse, capacity)
        gathered = payload.new_empty(world_size * payload.numel())
        work = _all_gather(gathered, payload, group=group, async_op=True)
        sent_bytes = (world_size - 1) * payload.numel() + asked_bytes
        return _Gathered(work.get_future(), sent_bytes, gathered.view(world_size, -1), payload, sparse)


# all_gather_into_tensor has had this name since torch 2.13, which deprecates the old one
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


@dataclass(frozen=True, eq=False)
class _Gathered(Exchange):
    future: torch.futures.Future[list[Tensor]]
    sent_bytes: int
    gathered: Tensor
    payload: Tensor  # must live until it is sent
    sparse: SparseGradient

    def finish(self, out: Tensor) -> Outcome:
        self.future.value()  # raises when a worker is gone; without it, memory that never arrived would be decoded
        parts = [codec.decode(row, self.sparse.numel, self.sparse.values.dtype) for row in self.gathered]
        ops.scatter_mean(parts, out)
        touched = torch.cat([part.indices for part in parts])
        return Outcome(ops.all_finite(out[touched]))
