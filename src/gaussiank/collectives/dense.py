"""All-reduce of the whole vector: what DDP does by itself, and what a density of 1 needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank import ops
from gaussiank.sparse import SparseGradient

from .collective import Collective, Exchange, Outcome


@dataclass(frozen=True)
class DenseAllReduce(Collective):
    """Sum dense vectors over workers; ``sent_bytes`` is that of a ring, 2 (P - 1) / P of the vector."""

    def start(
        self, sparse: SparseGradient, *, capacity: int | None, group: dist.ProcessGroup | None = None
    ) -> Exchange:
        """Spread the entries over a dense vector and send that; counts do not matter."""
        return self.start_dense(sparse.dense(), group=group)

    def start_dense(self, vector: Tensor, *, group: dist.ProcessGroup | None = None) -> Exchange:
        """Send a dense vector, which becomes the mean in place.

        Args:
            vector: ``[numel]`` of any dtype that the backend reduces; divided by the world size first, as DDP does.
            group: process group, or None for the default one.
        """
        world_size = dist.get_world_size(group)
        work = dist.all_reduce(vector.div_(world_size), group=group, async_op=True)
        assert work is not None  # async_op
        return _Reduced(work.get_future(), ring_bytes(vector, world_size), vector)


def ring_bytes(vector: Tensor, world_size: int) -> int:
    """Return what one worker sends to all-reduce ``vector`` in a ring, in bytes.

    Example:
        >>> ring_bytes(torch.zeros(100), world_size=4)
        600
    """
    return 2 * (world_size - 1) * vector.numel() * vector.element_size() // world_size


@dataclass(frozen=True, eq=False)
class _Reduced(Exchange):
    future: torch.futures.Future[list[Tensor]]
    sent_bytes: int
    vector: Tensor

    def finish(self, out: Tensor) -> Outcome:
        self.future.value()
        if out.data_ptr() != self.vector.data_ptr():
            out.copy_(self.vector)
        return Outcome(ops.all_finite(out))
