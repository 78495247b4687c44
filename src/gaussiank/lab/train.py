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
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gaussiank.compressors import parse_compressor
from gaussiank.hook import Compression, compress
from gaussiank.lab.config import TrainConfig
from gaussiank.lab.data import Batches, ImageSet
from gaussiank.lab.models import MODELS, ModelSpec
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
        data: training and test set.
        report: takes each record, on every worker; the caller decides which worker keeps them.
        recorder: watches the gradients, or None.
    """

    def __init__(
        self,
        config: TrainConfig,
        method: str,
        data: tuple[ImageSet, ImageSet],
        report: Report,
        recorder: Observer | None = None,
    ) -> None:
        self._config = config
        self._method = method
        self._report = report
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._device = torch.device(config.device)
        self._spec: ModelSpec = MODELS[config.model]
        self._train, self._test = data
        self._batches = Batches(
            self._train, config.batch_size, rank=self._rank, world_size=self._world_size, seed=config.seed
        )
        torch.manual_seed(config.seed)
        self._model = DistributedDataParallel(self._spec.build().to(self._device))
        compressor = parse_compressor(method)
        correction = config.correction(compressor)
        self._compression: Compression = compress(
            self._model,
            config.schedule(len(self._batches)),
            compressor=compressor,
            scope=config.scope,
            momentum=correction,
            max_bytes=None if compressor.sends_all else config.max_bytes,
            recorder=recorder,
        )
        self._optimizer = torch.optim.SGD(
            self._model.parameters(),
            lr=config.lr,
            momentum=0.0 if correction else config.momentum,
            weight_decay=config.weight_decay,
        )
        self._rows = _Rows()

    @property
    def steps(self) -> int:
        """Steps that the whole training takes."""
        return self._config.steps or self._config.epochs * len(self._batches)

    def run(self) -> dict[str, Any]:
        """Train to the end; returns and reports the method's closing record."""
        started = time.perf_counter()
        epoch, step = 0, 0
        evaluation: dict[str, Any] = {}
        while step < self.steps:
            self._model.train()
            for images, labels in self._batches.epoch(epoch):
                step += 1
                self._step(step, images.to(self._device), labels.to(self._device))
                if step == self.steps:
                    break
            epoch += 1
            self._flush()
            evaluation = self._evaluate(step, step / len(self._batches))
        closing = self._closing(evaluation, time.perf_counter() - started)
        self._report(closing)
        return closing

    def _step(self, step: int, images: Tensor, labels: Tensor) -> None:
        started = self._now()
        loss = nn.functional.cross_entropy(self._model(self._spec.prepare(images)), labels)
        self._optimizer.zero_grad()
        loss.backward()
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

    @torch.no_grad()
    def _evaluate(self, step: int, epoch: float) -> dict[str, Any]:
        """Measure loss and accuracy on the test set, each worker on its share of it, and report them."""
        module = self._model.module
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)  # running statistics differ between workers; rank 0's count, as in DDP
        module.eval()
        counts = torch.zeros(3, dtype=torch.float64)
        for start in range(self._rank * 500, len(self._test), 500 * self._world_size):
            images = self._test.images[start : start + 500].to(self._device)
            labels = self._test.labels[start : start + 500].to(self._device)
            output = module(self._spec.prepare(images))
            loss = nn.functional.cross_entropy(output, labels, reduction="sum")
            correct = (output.argmax(1) == labels).sum()
            counts += torch.tensor([loss.item(), correct.item(), len(labels)], dtype=torch.float64)
        dist.all_reduce(counts)
        loss_sum, correct_sum, total = counts.tolist()
        record = {
            "kind": "eval",
            "method": self._method,
            "step": step,
            "epoch": epoch,
            "loss": loss_sum / total,
            "accuracy": correct_sum / total,
        }
        self._report(record)
        return record

    def _closing(self, evaluation: dict[str, Any], seconds: float) -> dict[str, Any]:
        rows = self._rows.averaged
        sent = statistics.fmean(row["sent_bytes"] for row in rows)
        dense = statistics.fmean(row["dense_bytes"] for row in rows)
        return {
            "kind": "method",
            "method": self._method,
            "steps": len(rows),
            "seconds": seconds,
            "accuracy": evaluation["accuracy"],
            "loss": evaluation["loss"],
            "kept_over_k": sum(row["kept"] for row in rows) / sum(row["k"] for row in rows),
            "sent_bytes": sent,
            "dense_bytes": dense,
            "compression": dense / sent if sent else 1.0,
            **{key: statistics.median(row[key] for row in rows) for key in _COLUMNS[4:]},
            "digest": self._digest(),
        }

    def _digest(self) -> str:
        """Return the SHA-256 of the final parameters, which must be the same bits on every worker."""
        parameters = torch.cat([parameter.detach().flatten().cpu() for parameter in self._model.module.parameters()])
        digest = hashlib.sha256(parameters.numpy().tobytes()).hexdigest()
        digests = [""] * self._world_size
        dist.all_gather_object(digests, digest)
        if len(set(digests)) > 1:
            raise RuntimeError(
                f"parameters must end the same on every worker, got {len(set(digests))} versions with {self._method}."
            )
        return digest
