"""What a person sees while methods train: a bar each on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gaussiank_lab.metric import ACCURACY, Metric
from gaussiank_lab.records import number
from gaussiank_lab.summary import bytes_text


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
                f"loss {last['loss']:.3f}{self._judged} kept/k {last['kept'] / last['k']:.2f} "
                f"sent {bytes_text(last['sent_bytes'])}"
            )
            self._progress.update(self._task, completed=last["step"], now=now)
