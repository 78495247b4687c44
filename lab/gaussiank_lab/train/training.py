"""Train one model with one method."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gaussiank_lab.checkpoint import Place, Saver, WorkerState, restore_random_state
from gaussiank_lab.checkpoint.saver import random_state
from gaussiank_lab.data import Batch, Batches, Data
from gaussiank_lab.study.recorder import Recorder
from gaussiank_lab.train.config import TrainConfig, learning_rate
from gaussiank_lab.train.step import Measurements, Stepper, evaluate

FLUSH_STEPS = 10
"""Steps whose measurements are averaged over workers and written together, so that measuring costs little."""

Report = Callable[[dict[str, Any]], None]


class Training:
    """Train one model with one method.

    Args:
        config: settings of the run.
        method: which of its methods.
        data: training and test set, loaded for the model.
        report: takes each record, on every worker; the caller decides which worker keeps them.
        saver: writes checkpoints, or None.
        recorder: records the gradients, or None; to ``restore``, made with ``resume``.
    """

    def __init__(
        self,
        config: TrainConfig,
        method: str,
        data: Data,
        report: Report,
        saver: Saver | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._config = config
        self._method = method
        self._report = report
        self._saver = saver
        self._recorder = recorder
        self._data = data
        self._batches = Batches(
            data.train,
            config.batch_size,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            seed=config.seed,
            augment=config.augment,
        )
        self._epoch_steps = config.epoch_steps(len(self._batches))
        self._stepper = Stepper(config, method, data, self._epoch_steps, recorder)
        self._measurements = Measurements()
        self._step = 0
        self._ahead = 0  # steps by which the place in the data is ahead of those taken, once the workers have changed
        self._elapsed_s = 0.0
        self._evaluation: dict[str, float] = {}

    @property
    def model(self) -> nn.Module:
        """The bare model."""
        return self._stepper.model

    @property
    def done(self) -> int:
        """Steps taken."""
        return self._step

    @property
    def steps(self) -> int:
        """Steps that the whole training takes."""
        ahead = 0 if self._config.steps else self._ahead  # of a place in the data, which steps alone do not name
        return self._config.total_steps(self._epoch_steps) - ahead

    def run(self) -> dict[str, Any]:
        """Train to the end; returns and reports the method's closing record."""
        self._started = time.perf_counter() - self._elapsed_s
        while self._step < self.steps:
            epoch, done = divmod(self._step + self._ahead, self._epoch_steps)
            for batches in self._epoch(epoch, done):
                self._step += 1
                self._take(batches)
                if self._step == self.steps:
                    break
        closing = self._closing(time.perf_counter() - self._started)
        self._report(closing)
        return closing

    def _epoch(self, epoch: int, done: int = 0) -> Iterator[list[Batch]]:
        """Yield the batches of each step of an epoch, but not of its first ``done`` steps."""
        batches = self._batches.epoch(epoch, start=done * self._config.accumulate)
        for _ in range(done, self._epoch_steps):
            yield list(islice(batches, self._config.accumulate))

    def _take(self, batches: list[Batch]) -> None:
        """Take a step, and do whatever is due after it: measure, evaluate, save."""
        config, step = self._config, self._step
        lr = learning_rate(config.lr, config.lr_schedule, step, self.steps, config.lr_warmup_steps)
        times = self._stepper.take(lr, batches, last=step == self.steps)
        metrics = self._stepper.metrics
        self._measurements.add(
            {
                "kind": "step",
                "method": self._method,
                "step": step,
                "density": metrics.density,
                "k": metrics.k,
                "numel": metrics.numel,
            },
            {
                "kept": metrics.kept,
                "sent_bytes": metrics.sent_bytes,
                "dense_bytes": metrics.dense_bytes,
                "select_s": metrics.select_s,
                "compute_s": times.step_s - times.communicate_s - metrics.select_s,
                **times._asdict(),
            },
        )
        for one in self._stepper.rounds:
            self._report({"kind": "round", "method": self._method, "step": step, **one})
        last = step == self.steps
        since = step if config.eval_steps else step + self._ahead
        if last or since % (config.eval_steps or self._epoch_steps) == 0:
            self._flush()
            self._evaluation = self._evaluate()
        if self._saver and self._saver.due(step, self.steps):
            self._flush()
            self._save(self._saver)
        if self._measurements.waiting == FLUSH_STEPS:
            self._flush()

    def _flush(self) -> None:
        """Average the measurements of the last steps over workers and report them."""
        for record in self._measurements.average():
            self._report(record)

    def _evaluate(self) -> dict[str, float]:
        """Judge the model by the test set, its averaged weights too, and report the result."""
        batch_size, device = self._config.spec.eval_batch, torch.device(self._config.device)
        precision, average = self._stepper.precision, self._stepper.average
        with self._stepper.judged():
            values = evaluate(self.model, self._data, batch_size, device, precision)
        if average is not None:
            for mine, of_model in zip(average.module.buffers(), self.model.buffers(), strict=True):
                mine.copy_(of_model)  # running statistics are the model's own
            judged = evaluate(average.module, self._data, batch_size, device, precision)
            values |= {f"ema_{key}": value for key, value in judged.items()}
        epoch = (self._step + self._ahead) / self._epoch_steps
        self._report({"kind": "eval", "method": self._method, "step": self._step, "epoch": epoch, **values})
        return values

    def _closing(self, seconds: float) -> dict[str, Any]:
        skipped = {"skipped": self._stepper.skipped} if self._stepper.precision.scaler.is_enabled() else {}
        return {
            "kind": "method",
            "method": self._method,
            "steps": len(self._measurements),
            "seconds": seconds,
            **self._evaluation,
            **self._measurements.closing(),
            **skipped,
            **({"auto": finding} if (finding := self._stepper.finding) else {}),
            "digest": self._digest(),
        }

    def _digest(self) -> str:
        """Return the SHA-256 of the final parameters, which must be the same bits on every worker."""
        parameters = torch.cat([parameter.detach().flatten().cpu() for parameter in self.model.parameters()])
        digest = hashlib.sha256(parameters.numpy().tobytes()).hexdigest()
        digests = [""] * dist.get_world_size()
        dist.all_gather_object(digests, digest)
        if len(set(digests)) > 1:
            raise RuntimeError(
                f"parameters must end the same on every worker, got {len(set(digests))} versions with {self._method}."
            )
        return digest

    # ------------------------------------------------------------------ saving and going on

    def _save(self, saver: Saver) -> None:
        epoch, done = divmod(self._step + self._ahead, self._epoch_steps)
        shared = {
            "recorder": self._recorder.state_dict() if self._recorder else None,  # rank 0's, who alone writes
            **self._stepper.shared_state(),
            "measurements": self._measurements.state(),
            "evaluation": self._evaluation,
            "elapsed_s": time.perf_counter() - self._started,
            "step": self._step,
            "epoch": epoch,
            "examples": done * self._step_examples,
        }
        own = {"compression": self._stepper.own_state(), "random": random_state(torch.device(self._config.device))}
        place = Place(self._config.methods.index(self._method), self._step)
        saved = saver.save(place, self._method, own, shared)
        self._report({"kind": "checkpoint", "method": self._method, "step": self._step, **saved.as_record()})

    @property
    def _step_examples(self) -> int:
        """Examples that all workers together see in a step."""
        return self._config.batch_size * self._config.accumulate * dist.get_world_size()

    def restore(self, state: WorkerState) -> None:
        """Go on from a checkpoint: at its step, at its place in the data, with its random numbers.

        With another number of workers, the place is that after as many examples of the epoch, rounded down to a step.
        """
        shared = state.shared
        self._stepper.restore(state.compression, shared, next(self._epoch(0)))
        if self._recorder is not None:
            self._recorder.load_state_dict(shared.get("recorder") or {})
        self._measurements.load(shared["measurements"])
        self._evaluation = shared["evaluation"]
        self._elapsed_s = shared["elapsed_s"]
        self._step = shared["step"]
        place = shared["epoch"] * self._epoch_steps + shared["examples"] // self._step_examples
        self._ahead = place - self._step
        if state.random is not None:
            restore_random_state(state.random, torch.device(self._config.device))
        else:  # this worker is new: a stream of its own
            torch.manual_seed((self._config.seed << 16) + 1 + dist.get_rank() + (self._step << 32))
