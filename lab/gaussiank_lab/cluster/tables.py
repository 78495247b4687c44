"""Predictions as text: one row a method, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import Box
from rich.table import Table

from gaussiank_lab.sim import Prediction

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


def bits_text(rate: float) -> str:
    """Return a bandwidth with three digits and its unit.

    Example:
        >>> bits_text(9.41e9), bits_text(1e8)
        ('9.41 Gb/s', '100 Mb/s')
    """
    for unit, scale in (("Tb/s", 1e12), ("Gb/s", 1e9), ("Mb/s", 1e6)):
        if rate >= 0.9995 * scale:
            return f"{_digits(rate / scale)} {unit}"
    return f"{_digits(rate / 1e3)} kb/s"


def count_text(count: float) -> str:
    """Return a number of parameters with three digits.

    Example:
        >>> count_text(61_706), count_text(25_557_032), count_text(1.31e9)
        ('61.7k', '25.6M', '1.31B')
    """
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * scale:
            return f"{_digits(count / scale)}{unit}"
    return f"{count:.0f}"


def times_text(factor: float) -> str:
    """Return a gain; two decimals where they matter.

    Example:
        >>> times_text(1.033), times_text(98.9)
        ('1.03x', '98.9x')
    """
    return f"{factor:.2f}x" if factor < 9.995 else f"{_digits(factor)}x"


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
        gain, efficiency = times_text(baseline.step_s / row.step_s), f"{100 * row.efficiency:.0f}"
        waits, selects, sent = seconds_text(row.exposed_s), seconds_text(row.select_s), bytes_text(row.sent_bytes)
        table.add_row(row.method, seconds_text(row.step_s), gain, efficiency, waits, selects, sent, _digits(money))
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
