"""PowerSGD as torch has it, a communication hook of DDP: what others use, to compare with."""

# No `from __future__ import annotations` here: DDP reads the annotations of the hook as types.

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from gaussiank.comm import all_reduce_bytes
from gaussiank.metrics import Metrics

ONE_BUCKET_MB = 1 << 20
"""It starts messages inside callbacks: on Gloo it hangs with more than one bucket."""


@dataclass
class _Exchange:
    """State of the hook, and when its last bucket was ready."""

    power: PowerSGDState
    launched_at: float = 0.0


class PowerSGDExchange:
    """Let torch's hook send each gradient matrix as two thin ones, after two dense steps.

    Args:
        model: whose gradients are averaged.
        rank: columns of the thin matrices.

    Attributes:
        module: the model under DDP.
    """

    def __init__(self, model: nn.Module, rank: int) -> None:
        self.module = DistributedDataParallel(model, bucket_cap_mb=ONE_BUCKET_MB)
        power = PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
        self._exchange = _Exchange(power)
        self.module.register_comm_hook(self._exchange, _noting)
        self._steps = self._sent_numel = 0
        self._numel = sum(one.numel() for one in model.parameters() if one.requires_grad)

    def measured(self) -> Metrics:
        """Return what was sent since the last call, one step."""
        after = self._exchange.power.compression_stats()[2]
        numel, self._sent_numel = after - self._sent_numel or self._numel, after  # dense steps are not in the stats
        self._steps += 1
        return Metrics(
            step=self._steps - 1,
            numel=self._numel,
            k=self._numel,
            kept=self._numel,  # of every entry something arrives
            sent_bytes=_all_reduced(numel),
            dense_bytes=_all_reduced(self._numel),
            launched_at=self._exchange.launched_at,
        )


def _all_reduced(numel: int) -> int:
    return all_reduce_bytes(torch.empty(numel, device="meta"), dist.get_world_size())


def _noting(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    state.launched_at = time.perf_counter()
    return powerSGD_hook(state.power, bucket)
