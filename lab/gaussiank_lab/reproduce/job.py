"""One training run that recipes need: what it is, where its results lie, and how it is done once and for all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaussiank_lab.launch import launch
from gaussiank_lab.report.records import Records, read_records
from gaussiank_lab.study.study import Study, read_study
from gaussiank_lab.train.config import TrainConfig
from gaussiank_lab.train.run import require_startable, run, study_dir

# rough cost of a step of one worker, for the time left
_WEIGHTS = {"fnn3": 1.0, "lenet5": 1.5, "resnet20": 20.0, "lstm-small": 7.0, "vgg16": 150.0, "lstm-an4": 200.0}
_OTHER_WEIGHT = 150.0


@dataclass(frozen=True)
class Job:
    """Train with some methods, and record gradients if asked to.

    Args:
        config: settings of the run.
        record_every: steps from one sample of the gradients to the next, or None.
        operators: compressors to try on what is recorded.
    """

    config: TrainConfig
    record_every: int | None = None
    operators: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name of its directory: the same settings have the same one, and share results."""
        settings = [self.config.as_record(), self.record_every, self.operators]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.config.model}-seed{self.config.seed}-{digest}"

    @property
    def cost(self) -> float:
        """About how long it takes, in a unit of its own."""
        config = self.config
        steps = config.steps or 100 * config.epochs
        return steps * len(config.methods) * config.workers * _WEIGHTS.get(config.model, _OTHER_WEIGHT) + 300

    def where(self, out: Path) -> Path:
        """Return the directory of its results."""
        return out / "jobs" / self.key

    def done(self, out: Path) -> bool:
        """Tell whether its results are there; they are whole or not there at all."""
        return self.where(out).is_dir()

    def do(self, out: Path) -> None:
        """Train, in worker processes; results get their name when they are complete.

        Raises:
            ValueError: the run cannot be started.
            RuntimeError: a worker failed.
        """
        require_startable(self.config)
        unfinished = self.where(out).with_name(f".{self.key}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        record: Mapping[str, Any] | None = None
        if self.record_every is not None:
            record = {"every": self.record_every, "operators": self.operators, "dense_mean": True}
        try:
            command = f"gaussiank reproduce ({self.key})"
            launch(run, self.config.workers, self.config, unfinished, command, None, None, record)
            unfinished.rename(self.where(out))
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def records(self, out: Path) -> Records:
        """Read what was trained."""
        return read_records(self.where(out))

    def study(self, out: Path, method: str) -> Study:
        """Read the gradients of one method."""
        return read_study(study_dir(self.where(out), method))


def complete(jobs: Sequence[Job], out: Path) -> list[Job]:
    """Return the jobs of those models whose jobs are all done: half a model's seeds make no claim."""
    missing = {job.config.model for job in jobs if not job.done(out)}
    return [job for job in jobs if job.config.model not in missing]
