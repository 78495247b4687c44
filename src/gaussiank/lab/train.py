"""One method's training on this worker: the loop that a user would write, with a stop-watch."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gaussiank.compressors import parse_compressor
from gaussiank.hook import Compression, compress
from gaussiank.lab.clipping import GradientCarrier, clip_local
from gaussiank.lab.config import TrainConfig
from gaussiank.lab.data import Batch, Batches, Data
from gaussiank.lab.evaluation import evaluate
from gaussiank.lab.learning_rate import learning_rate
from gaussiank.observer import Observer

FLUSH_STEPS = 10
"""Steps whose measurements are averaged over workers and written together, so that measuring costs little."""

Report = Callable[[dict[str, Any]], None]

# measured on every worker at every step, and averaged over workers
_COLUMNS = ("loss", "kept", "sent_bytes", "dense_bytes", "step_s", "compute_s", "select_s", "communicate_s")


@dataclass
class _Rows:
    """Measurements of one method: those not yet averaged, and those that are."""

    local: list[list[float]] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)
    averaged: list[dict[str, Any]] = field(default_factory=list)


class Training:
    """Train one model with one method.

    Args:
        config: settings of the run.
        method: which of its methods.
        data: training and test set, loaded for the model.
        report: takes each record, on every worker; the caller decides which worker keeps them.
        recorder: watches the gradients, or None.
    """

    def __init__(
        self, config: TrainConfig, method: str, data: Data, report: Report, recorder: Observer | None = None
    ) -> None:
        self._config = config
        self._method = method
        self._report = report
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._device = torch.device(config.device)
        self._data = data
        self._batches = Batches(
            data.train,
            config.batch_size,
            rank=self._rank,
            world_size=self._world_size,
            seed=config.seed,
            augment=config.augment,
        )
        torch.manual_seed(config.seed)
        self._model = config.spec.build(data.outputs).to(self._device)
        torch.manual_seed((config.seed << 16) + 1 + self._rank)  # every worker drops out its own activations
        clips = config.clip_grad is not None
        self._exchange = DistributedDataParallel(GradientCarrier(self._model) if clips else self._model)
        compressor = parse_compressor(method)
        correction = config.correction(compressor)
        self._compression: Compression = compress(
            self._exchange,
            config.schedule(len(self._batches)),
            compressor=compressor,
            scope=config.scope,
            momentum=correction,
            max_bytes=None if compressor.sends_all else config.max_bytes,
            collective=config.collective,
            recorder=recorder,
        )
        self._optimizer = self._make_optimizer(momentum=0.0 if correction else config.momentum)
        self._rows = _Rows()

    @property
    def steps(self) -> int:
        """Steps that the whole training takes."""
        return self._config.steps or self._config.epochs * len(self._batches)

    def _make_optimizer(self, momentum: float) -> torch.optim.Optimizer:
        config, parameters = self._config, self._model.parameters()
        if config.optimizer == "adamw":
            return torch.optim.AdamW(parameters, config.lr, betas=(momentum, 0.999), weight_decay=config.weight_decay)
        return torch.optim.SGD(parameters, config.lr, momentum=momentum, weight_decay=config.weight_decay)

    def run(self) -> dict[str, Any]:
        """Train to the end; returns and reports the method's closing record."""
        started = time.perf_counter()
        step = 0
        between = self._config.eval_steps or len(self._batches)
        evaluation: dict[str, float] = {}
        while step < self.steps:
            for batch in self._batches.epoch(step // len(self._batches)):
                step += 1
                self._step(step, batch.to(self._device))
                if step == self.steps or step % between == 0:
                    self._flush()
                    evaluation = self._evaluate(step)
                if step == self.steps:
                    break
        closing = self._closing(evaluation, time.perf_counter() - started)
        self._report(closing)
        return closing

    def _step(self, step: int, batch: Batch) -> None:
        config = self._config
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(config.lr, config.lr_schedule, step, self.steps, config.lr_warmup_steps)
        started = self._now()
        loss = self._backward(batch)
        back = self._now()
        self._optimizer.step()
        ended = self._now()
        metrics = self._compression.metrics
        # all that happens after the last message has left is waiting for messages and unpacking them
        communicate_s = back - metrics.launched_at
        step_s = ended - started
        compute_s = step_s - communicate_s - metrics.select_s
        sent = (metrics.kept, metrics.sent_bytes, metrics.dense_bytes)
        self._rows.local.append([loss.item(), *sent, step_s, compute_s, metrics.select_s, communicate_s])
        record = {"step": step, "density": metrics.density, "k": metrics.k, "numel": metrics.numel}
        self._rows.pending.append({"kind": "step", "method": self._method, **record})
        if len(self._rows.local) == FLUSH_STEPS:
            self._flush()

    def _backward(self, batch: Batch) -> Tensor:
        """Leave the exchanged gradient of a batch in the parameters; returns this worker's loss."""
        inputs = self._data.train.prepare(batch.inputs)
        clips = self._config.clip_grad is not None
        output = (self._model if clips else self._exchange)(*inputs)
        loss = self._data.task.loss(output, batch.targets)
        self._optimizer.zero_grad()
        loss.backward()
        if self._config.clip_grad is not None:
            clip_local(self._model, self._config.clip_grad)
            self._exchange().backward()
        return loss.detach()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _flush(self) -> None:
        """Average the measurements of the last steps over workers and report them."""
        if not self._rows.local:
            return
        table = torch.tensor(self._rows.local, dtype=torch.float64)
        dist.all_reduce(table)
        for record, row in zip(self._rows.pending, (table / self._world_size).tolist(), strict=True):
            record.update(zip(_COLUMNS, row, strict=True))
            self._rows.averaged.append(record)
            self._report(record)
        self._rows.local, self._rows.pending = [], []

    def _evaluate(self, step: int) -> dict[str, float]:
        """Judge the model by the test set, and report the result."""
        values = evaluate(self._model, self._data, self._config.spec.eval_batch, self._device)
        record = {"kind": "eval", "method": self._method, "step": step, "epoch": step / len(self._batches), **values}
        self._report(record)
        return values

    def _closing(self, evaluation: dict[str, float], seconds: float) -> dict[str, Any]:
        rows = self._rows.averaged
        sent = statistics.fmean(row["sent_bytes"] for row in rows)
        dense = statistics.fmean(row["dense_bytes"] for row in rows)
        return {
            "kind": "method",
            "method": self._method,
            "steps": len(rows),
            "seconds": seconds,
            **evaluation,
            "kept_over_k": sum(row["kept"] for row in rows) / sum(row["k"] for row in rows),
            "sent_bytes": sent,
            "dense_bytes": dense,
            "compression": dense / sent if sent else 1.0,
            **{key: statistics.median(row[key] for row in rows) for key in _COLUMNS[4:]},
            "digest": self._digest(),
        }

    def _digest(self) -> str:
        """Return the SHA-256 of the final parameters, which must be the same bits on every worker."""
        parameters = torch.cat([parameter.detach().flatten().cpu() for parameter in self._model.parameters()])
        digest = hashlib.sha256(parameters.numpy().tobytes()).hexdigest()
        digests = [""] * self._world_size
        dist.all_gather_object(digests, digest)
        if len(set(digests)) > 1:
            raise RuntimeError(
                f"parameters must end the same on every worker, got {len(set(digests))} versions with {self._method}."
            )
        return digest
