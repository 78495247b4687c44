"""Send the records of a run to TensorBoard or Weights & Biases as well, where these are installed."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gaussiank_lab.records import number

_ID_NAME = "wandb-id"


class Tracker(ABC):
    """Take the records of a run, on rank 0."""

    @abstractmethod
    def write(self, record: Mapping[str, Any]) -> None:
        """Take one record; kinds that say nothing in numbers are passed over."""

    @abstractmethod
    def close(self) -> None:
        """Send what is left."""


def require_trackers(names: Sequence[str]) -> None:
    """Raise unless all trackers are known and installed.

    Args:
        names: ``tensorboard``, ``wandb`` or ``wandb:PROJECT``.

    Raises:
        ValueError: one is not; says how to get it.
    """
    for name in names:
        base, _, project = name.partition(":")
        if base not in _TRACKERS or (project and base != "wandb"):
            raise ValueError(f"track must be tensorboard, wandb or wandb:PROJECT, got {name!r}. Correct it.")
        if importlib.util.find_spec(base) is None:
            raise ValueError(
                f"track must be installed, got {base}, which is not. Install it: pip install 'gaussiank-lab[{base}]'."
            )


def open_trackers(names: Sequence[str], run_dir: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Open trackers by name; a resumed run goes on where it was."""
    return [_TRACKERS[name.partition(":")[0]](run_dir, config, name.partition(":")[2]) for name in names]


class TensorBoard(Tracker):
    """Write event files below ``RUN/tensorboard``, one folder a method, so that their curves lie on one another."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], project: str) -> None:
        self._folder = run_dir / "tensorboard"
        self._writers: dict[str, Any] = {}

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the record's numbers at its step."""
        method, step = str(record.get("method", "")).replace(":", "-"), record.get("step", 0)
        for name, value in _numbers(record):
            if method not in self._writers:
                writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
                self._writers[method] = writer(str(self._folder / method), purge_step=step)
            self._writers[method].add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close every file."""
        for writer in self._writers.values():
            writer.close()


class Wandb(Tracker):
    """Log to one run of Weights & Biases, each method under its own name and step."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], project: str) -> None:
        known = run_dir / _ID_NAME
        self._run = importlib.import_module("wandb").init(
            project=project or "gaussiank",
            name=run_dir.name,
            dir=str(run_dir),
            config=dict(config),
            id=known.read_text().strip() if known.exists() else None,
            resume="allow",
        )
        known.write_text(f"{self._run.id}\n")

    def write(self, record: Mapping[str, Any]) -> None:
        """Log the record's numbers."""
        method = record.get("method")
        numbers = {f"{method}/{name}": value for name, value in _numbers(record)}
        if numbers:
            self._run.log({**numbers, f"{method}/step": record["step"]})

    def close(self) -> None:
        """Finish the upload."""
        self._run.finish()


_TRACKERS: dict[str, type[Any]] = {"tensorboard": TensorBoard, "wandb": Wandb}
_STEP = {"loss": 1, "density": 1, "kept": 1, "sent_bytes": 1, "step_s": 1000, "select_s": 1000, "communicate_s": 1000}


def _numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield name and value of what a record measured; times in milliseconds."""
    if record["kind"] == "step":
        for key, factor in _STEP.items():
            yield f"train/{key.removesuffix('_s') + '_ms' if factor > 1 else key}", factor * number(record, key)
    elif record["kind"] == "eval":
        for key, value in record.items():
            if key not in ("kind", "method", "step") and isinstance(value, (int, float)):
                yield f"test/{key}", float(value)
