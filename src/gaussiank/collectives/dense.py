"""All-reduce of the whole vector: what DDP does by itself, and what a density of 1 needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gaussiank import cost, ops
from gaussiank.codec import Wire
from gaussiank.cost import Cost, Load
from gaussiank.sparse import SparseGradient

from .base import Collective, ExchangeContext, Outcome, Program


@dataclass(frozen=True)
class DenseAllReduce(Collective):
    """Sum dense vectors over workers; ``sent_bytes`` is that of a ring, 2 (P - 1) / P of the vector."""

    multi_phase: ClassVar[bool] = False

    def rejects(self, *, bounded: bool) -> bool:
        """Everything enters."""
        return False

    def cost(self, load: Load, world_size: int) -> Cost:
        """Float32 values, in a ring."""
        return cost.dense(4 * load.numel)

    def message_bytes(self, k: int, numel: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
        """What a worker sends to the next one of a ring."""
        return 2 * (world_size - 1) * numel * dtype.itemsize // world_size

    def program(self, sparse: SparseGradient, context: ExchangeContext) -> Program:
        """Spread the entries over a dense vector and send that; neither counts nor the wire matter."""
        mean = sparse.dense().div_(context.comm.world_size)
        yield context.comm.all_reduce(mean)
        out = yield None
        out.copy_(mean)
        yield Outcome(ops.all_finite(out))
