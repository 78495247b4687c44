"""All-reduce of the whole vector: what DDP does by itself, and what a density of 1 needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank import ops
from gaussiank.codec import Wire
from gaussiank.sparse import SparseGradient

from .collective import Call, Collective, Exchange, Outcome, Program, Traffic
from .line import Line
from .rows import EXACT


@dataclass(frozen=True)
class DenseAllReduce(Collective):
    """Sum dense vectors over workers; ``sent_bytes`` is that of a ring, 2 (P - 1) / P of the vector."""

    @property
    def phased(self) -> bool:
        """One message."""
        return False

    def rejects(self, *, bounded: bool) -> bool:
        """Everything enters."""
        return False

    def traffic(self, numel: int, k: int, world_size: int, wire: Wire = EXACT) -> Traffic:
        """A ring: each part of the vector travels twice around, a P-th of it at a time."""
        return Traffic(2 * (world_size - 1), 2 * (world_size - 1) / world_size * 4 * numel, 0)

    def program(self, sparse: SparseGradient, call: Call) -> Program:
        """Spread the entries over a dense vector and send that; neither counts nor the wire matter."""
        return self._reduce(sparse.dense(), call.line)

    def start_dense(
        self, vector: Tensor, *, dtype: torch.dtype | None = None, group: dist.ProcessGroup | None = None
    ) -> Exchange:
        """Send a dense vector, which becomes the mean in place.

        Args:
            vector: ``[numel]`` of any dtype that the backend reduces; divided by the world size first, as DDP does.
            dtype: what it is rounded to on its way and summed up in, None for its own; then the mean is in
                ``vector`` only when the exchange is finished.
            group: process group, or None for the default one.
        """
        line = Line(group)
        return Exchange(self._reduce(vector, line, dtype), line)

    def _reduce(self, vector: Tensor, line: Line, dtype: torch.dtype | None = None) -> Program:
        mean = vector.div_(line.world_size)
        sent = mean if dtype is None else mean.to(dtype)
        yield line.all_reduce(sent)

        def finish(out: Tensor) -> Outcome:
            if out.data_ptr() != sent.data_ptr():
                out.copy_(sent)
            return Outcome(ops.all_finite(out))

        return finish
