"""Predictions as text: one row a method, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import Box
from rich.table import Table

from gaussiank.sim import Prediction

from .methods import DENSE, DENSE_16

UNDERLINED = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


def seconds_text(seconds: float) -> str:
    """Return a time with three digits and its unit.

    Example:
        >>> seconds_text(0.01234), seconds_text(12.3), seconds_text(0.0000123), seconds_text(0)
        ('12.3 ms', '12.3 s', '12.3 us', '0')
    """
    if seconds <= 0:
        return "0"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds / 1e-6)} us"


def bytes_text(size: float) -> str:
    """Return a size with three digits and its unit.

    Example:
        >>> bytes_text(8016), bytes_text(2.5e8), bytes_text(0)
        ('8.02 kB', '250 MB', '0')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.9995 * scale:
            return f"{_digits(size / scale)} {unit}"
    return f"{size:.0f} B" if size else "0"


def best_dense(predictions: Sequence[Prediction]) -> Prediction:
    """Return the faster of the dense methods among predictions for one number of workers."""
    return min((row for row in predictions if row.method in (DENSE.name, DENSE_16.name)), key=lambda row: row.step_s)


def detail_table(predictions: Sequence[Prediction], title: str, price: float | None = None) -> Table:
    """Build the table of all methods with one number of workers.

    Args:
        predictions: one a method.
        title: above the table.
        price: of a worker's hour, or None to count the hours of all workers together.
    """
    headers = ("step", "vs best\ndense", "scaling\n%", "waits", "selects", "sent by\nworker")
    cost = "epoch,\nhours" if price is None else "epoch,\ncost"
    table = plain_table(title, ("method", *headers, cost))
    baseline = best_dense(predictions)
    for row in predictions:
        money = row.worker_hours if price is None else row.worker_hours * price
        table.add_row(
            row.method, seconds_text(row.step_s), f"{baseline.step_s / row.step_s:.2f}x", f"{100 * row.efficiency:.0f}",
            seconds_text(row.exposed_s), seconds_text(row.select_s), bytes_text(row.sent_bytes),
            _digits(money),
        )  # fmt: skip
    return table


def scaling_table(predictions: Sequence[Prediction], title: str) -> Table:
    """Build the table of scaling efficiency, in percent, over methods and numbers of workers."""
    counts = sorted({row.workers for row in predictions})
    table = plain_table(title, ("method", *map(str, counts)))
    for name in dict.fromkeys(row.method for row in predictions):
        found = {row.workers: row for row in predictions if row.method == name}
        table.add_row(name, *(_percent(found[count].efficiency) for count in counts))
    return table


def plain_table(title: str, headers: Sequence[str]) -> Table:
    """Return an empty table whose first column is text and whose others are numbers."""
    table = Table(box=UNDERLINED, show_edge=False, padding=0, header_style="bold", title=title, title_justify="left")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index else "left", no_wrap=True)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.0995 else f"{100 * share:.2g}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"
