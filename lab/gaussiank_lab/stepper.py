"""One optimizer step on this worker: forward, backward with the exchange, update; and the state that it changes."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gaussiank import AdamWarning, Compression, compress
from gaussiank.autotune import Auto
from gaussiank.compressors import parse_compressor
from gaussiank.metrics import Metrics, Observer
from gaussiank_lab.clipping import GradientCarrier, clip_local
from gaussiank_lab.config import TrainConfig
from gaussiank_lab.data import Batch, Data
from gaussiank_lab.ema import WeightAverage
from gaussiank_lab.precision import Precision


class StepTimes(NamedTuple):
    """What a step cost on this worker.

    Attributes:
        loss: of its batches, their mean.
        step_s: seconds in all.
        communicate_s: seconds after the last message had left: waiting for messages and unpacking them.
    """

    loss: float
    step_s: float
    communicate_s: float


class Stepper:
    """Hold a model, its optimizer and its exchange, and take steps with them.

    Args:
        config: settings of the run.
        method: which of its methods.
        data: loaded for the model.
        epoch_steps: optimizer steps in an epoch.
        recorder: watches the gradients, or None.

    Attributes:
        model: the bare model.
        average: the moving average of its weights, or None.
        skipped: steps that were not taken, because a float16 gradient was not finite.
    """

    def __init__(
        self, config: TrainConfig, method: str, data: Data, epoch_steps: int, recorder: Observer | None = None
    ) -> None:
        self._config, self._data = config, data
        self._device = torch.device(config.device)
        torch.manual_seed(config.seed)
        self.model: nn.Module = config.spec.build(data.outputs).to(self._device)
        torch.manual_seed((config.seed << 16) + 1 + dist.get_rank())  # every worker drops out its own activations
        self._clips = config.clip_grad is not None
        self._exchange = DistributedDataParallel(GradientCarrier(self.model) if self._clips else self.model)
        self.precision = Precision(config.precision, self._device)
        compressor = parse_compressor(method)
        self._sends_all = compressor.sends_all
        self._taken = self._sent_dense = 0
        correction = config.correction(compressor)
        self._compression: Compression = compress(
            self._exchange,
            config.schedule(epoch_steps),
            compressor=compressor,
            scope=config.scope,
            momentum=correction,
            max_bytes=None if compressor.sends_all else config.max_bytes,
            scaler=self.precision.scaler,
            collective=config.collective,
            wire=config.wire,
            timeout_s=config.timeout_s,
            recorder=recorder,
        )
        if dist.get_rank() > 0:
            warnings.filterwarnings("ignore", category=AdamWarning)  # rank 0 says it for all
        self._optimizer = self._make_optimizer(momentum=0.0 if correction else config.momentum)
        self.average = None if config.ema is None else WeightAverage(self.model, config.ema)
        self.skipped = 0

    def _make_optimizer(self, momentum: float) -> torch.optim.Optimizer:
        config, parameters = self._config, self.model.parameters()
        if config.optimizer == "adamw":
            return torch.optim.AdamW(parameters, config.lr, betas=(momentum, 0.999), weight_decay=config.weight_decay)
        return torch.optim.SGD(parameters, config.lr, momentum=momentum, weight_decay=config.weight_decay)

    @property
    def metrics(self) -> Metrics:
        """What the last step sent."""
        return self._compression.metrics

    @property
    def finding(self) -> str:
        """What ``auto`` found out about the link; empty with other collectives."""
        collective = self._compression.collective
        if not isinstance(collective, Auto) or self._sends_all:
            return ""
        return f"{collective.finding}; {self._sent_dense} of {self._taken} steps were dense"

    def take(self, lr: float, batches: Sequence[Batch]) -> StepTimes:
        """Take a step on the mean loss of some batches.

        Args:
            lr: learning rate of this step.
            batches: as many as are accumulated.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        started = self._now()
        loss = self._backward(batches)
        back = self._now()
        if self._config.clip_mean is not None:
            self.precision.unscale(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_mean)
        if not self.precision.step(self._optimizer):
            self.skipped += 1
        elif self.average is not None:
            self.average.update()
        ended = self._now()
        self._taken += 1
        self._sent_dense += self.metrics.kept == self.metrics.numel
        return StepTimes(loss.item(), ended - started, back - self.metrics.launched_at)

    def _backward(self, batches: Sequence[Batch]) -> Tensor:
        """Leave the exchanged gradient in the parameters; returns this worker's loss."""
        self._optimizer.zero_grad()
        total: Tensor | None = None
        for number, batch in enumerate(batches, 1):
            alone = number < len(batches) and not self._clips  # its gradient waits for those of the others
            with self._exchange.no_sync() if alone else contextlib.nullcontext():
                loss = self._loss(batch) / len(batches)
                self.precision.scaled(loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
        if self._config.clip_grad is not None:
            clip_local(self.model, self._config.clip_grad * self.precision.scale)
            self._exchange().backward()
        assert total is not None  # a step has a batch
        return total

    def _loss(self, batch: Batch) -> Tensor:
        batch = batch.to(self._device)
        inputs = self._data.train.prepare(batch.inputs)
        output = self.precision.run(self.model if self._clips else self._exchange, inputs)
        return self._data.task.loss(output, batch.targets)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    # ------------------------------------------------------------------ saving

    def own_state(self) -> dict[str, Any]:
        """Return what belongs to this worker alone."""
        return self._compression.state_dict()

    def shared_state(self) -> dict[str, Any]:
        """Return what is the same on every worker, or is taken from rank 0, as DDP takes a model's buffers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict() if self.precision.scaler else None,
            "average": self.average.state_dict() if self.average else None,
            "skipped": self.skipped,
        }

    def restore(self, own: Mapping[str, Any], shared: Mapping[str, Any], batches: Sequence[Batch]) -> None:
        """Go on from saved states, bit for bit; every worker calls it before its first step.

        DDP orders its buckets anew after its first backward, and k is counted bucket by bucket: a step on the first
        order would choose other entries. So one backward is run before, whose every trace is then replaced.

        Args:
            own: this worker's.
            shared: the same on every worker.
            batches: for the backward that is thrown away.
        """
        self._backward(batches)
        self._optimizer.zero_grad()
        self.model.load_state_dict(shared["model"])
        self._optimizer.load_state_dict(shared["optimizer"])
        if self.precision.scaler:
            self.precision.scaler.load_state_dict(shared["scaler"])
        if self.average:
            self.average.load_state_dict(shared["average"])
        self.skipped = shared["skipped"]
        self._compression.load_state_dict(own)
