"""What shows a run while it goes: the progress bar, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gaussiank_lab.metric import ACCURACY, Metric
from gaussiank_lab.report.records import STEP_NUMBERS, number
from gaussiank_lab.report.summary import bytes_text


class LiveProgress:
    """Shows records as they come.

    Args:
        console: where to show them.
        metric: what the run is judged by.
    """

    def __init__(self, console: Console, metric: Metric = ACCURACY) -> None:
        self._console = console
        self._metric = metric
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._judged = ""
        self._last: dict[str, Any] | None = None

    def __enter__(self) -> LiveProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, method: str, steps: int, done: int = 0) -> None:
        """Start the bar of a method, of which some steps may be done."""
        self._judged, self._last = "", None
        self._task = self._progress.add_task(
            escape(method.split(":", maxsplit=1)[0]), total=steps, completed=done, now=""
        )

    def say(self, sentence: str) -> None:
        """Print a sentence above the bars."""
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def show(self, record: dict[str, Any]) -> None:
        """Show a step, evaluation or closing record."""
        if record["kind"] == "step":
            self._last = record
            self._update()
        elif record["kind"] == "eval":
            judged = self._metric.text(number(record, self._metric.key))
            self._judged = f" test {judged}"
            self._update()
            if not self._console.is_terminal:
                extra = f" (perplexity {record['perplexity']:.4g})" if "perplexity" in record else ""
                loss = "" if self._metric.key == "loss" else f"loss {record['loss']:.3f}, "
                self._console.print(
                    f"{record['method']}: step {record['step']}, {loss}{self._metric.name} {judged}{extra}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )

    def _update(self) -> None:
        """Redraw the bar from the last step and the last evaluation."""
        last = self._last
        if last is not None:
            now = (
                f"loss {last['loss']:.3f}{self._judged} kept/k {last['kept'] / max(1, last['k']):.2f} "
                f"sent {bytes_text(last['sent_bytes'])}"
            )
            self._progress.update(self._task, completed=last["step"], now=now)


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
_ROUND_NUMBERS = ("sent_bytes", "kept", "difference_norm", "residual_norm", "round_s", "waited_s")


def _numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield name and value of what a record measured; times in milliseconds."""
    if record["kind"] == "step":
        for key in ("density", *STEP_NUMBERS):
            yield _scalar("train", record, key)
    elif record["kind"] == "round":
        for key in _ROUND_NUMBERS:
            yield _scalar("round", record, key)
        yield "round/overlap", 1 - number(record, "waited_s") / number(record, "round_s")
    elif record["kind"] == "eval":
        for key, value in record.items():
            if key not in ("kind", "method", "step") and isinstance(value, (int, float)):
                yield f"test/{key}", float(value)


def _scalar(kind: str, record: Mapping[str, Any], key: str) -> tuple[str, float]:
    value = number(record, key)
    return (f"{kind}/{key.removesuffix('_s')}_ms", 1000 * value) if key.endswith("_s") else (f"{kind}/{key}", value)
