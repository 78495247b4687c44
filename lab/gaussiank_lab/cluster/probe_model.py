"""Measures a model's step on this worker: forward, backward up to each of DDP's buckets, optimizer."""
# No `from __future__ import annotations` here: DDP reads the annotations of the hook as types.

import itertools
import statistics
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket  # torch.distributed shows it at run time only, not to type checkers
from torch.nn.parallel import DistributedDataParallel

from gaussiank_lab.data import Batches
from gaussiank_lab.train.config import TrainConfig, resolve

from .stopwatch import Effort, now

WARM_STEPS = 3


class ModelTimes(NamedTuple):
    """Medians on this worker, in seconds.

    Attributes:
        forward_s: input, forward and loss.
        backward_s: of each bucket, in the order of backward.
        optimizer_s: the optimizer's step, and setting gradients to zero.
        numels: of the buckets.
        epoch_samples: examples of an epoch.
        compute_cv: deviation over mean of forward and backward.
    """

    forward_s: float
    backward_s: tuple[float, ...]
    optimizer_s: float
    numels: tuple[int, ...]
    epoch_samples: int
    compute_cv: float


class _Clock:
    """Notes when each bucket is full, and sends nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.full: list[float] = []
        self.numels: list[int] = []


def _note(state: _Clock, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    if bucket.index() == 0:
        state.full, state.numels = [], []
    state.full.append(now(state.device))
    state.numels.append(bucket.buffer().numel())
    done: torch.futures.Future[Tensor] = torch.futures.Future(
        devices=[state.device] if state.device.type == "cuda" else None
    )
    done.set_result(bucket.buffer())
    return done


def measure_model(name: str, batch_size: int, device: torch.device, effort: Effort) -> ModelTimes:
    """Train a few steps without any message, all workers at once, as they will in training.

    Args:
        name: key of the lab's ``MODELS``.
        batch_size: examples of this worker.
        device: where to train.
        effort: how many steps.
    """
    config = TrainConfig(**resolve(None, None, {"model": name, "batch_size": batch_size}))
    data = config.load_data()
    batches = Batches(data.train, batch_size, rank=dist.get_rank(), world_size=dist.get_world_size(), seed=0)
    batch = next(batches.epoch(0)).to(device)
    torch.manual_seed(0)
    module = DistributedDataParallel(config.spec.build(data.outputs).to(device))
    clock = _Clock(device)
    module.register_comm_hook(clock, _note)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    forward, buckets, stepped = [], [], []
    for step in range(WARM_STEPS + effort.steps):
        dist.barrier()
        began = now(device)
        loss = data.task.loss(module(*data.train.prepare(batch.inputs)), batch.targets)
        lost = now(device)
        loss.backward()
        back = now(device)
        optimizer.step()
        optimizer.zero_grad()
        ended = now(device)
        if step >= WARM_STEPS:
            edges = [lost, *clock.full[:-1], back]  # what is left after the last bucket belongs to it
            forward.append(lost - began)
            buckets.append([end - start for start, end in itertools.pairwise(edges)])
            stepped.append(ended - back)
    whole = sorted(sum(row) + first for row, first in zip(buckets, forward, strict=True))
    middle = statistics.median(whole)
    last = len(whole) - 1
    spread = (whole[round(0.84 * last)] - whole[round(0.16 * last)]) / 2  # one deviation, without outliers
    return ModelTimes(
        statistics.median(forward),
        tuple(statistics.median(column) for column in zip(*buckets, strict=True)),
        statistics.median(stepped),
        tuple(clock.numels),
        len(data.train),
        spread / middle,
    )
