"""What every method of a run achieved, as one row of text each: the table of the terminal and of the report."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import partial

from rich.box import Box
from rich.table import Table
from rich.text import Text

from gaussiank_lab.report.records import STEP_TIMES, Records, number

MISSING = "–"  # the sign for a number that was not measured
_LINE = 16  # characters of a line of a method's name
# One rule under the header and one blank between columns: nine columns and a long name fit 80 characters.
UNDERLINED = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


def headers(records: Records) -> tuple[str, ...]:
    """Return the headings of ``summary_rows``, each with its unit in a second line."""
    metric = records.metric
    return ("method", f"{metric.name}\n{metric.unit}", *(heading for heading, _, _ in _columns()))


def summary_rows(records: Records) -> list[tuple[str, ...]]:
    """Return one row of texts for each finished method, in the order they ran.

    What a method with a loss that was not finite is judged by is the word "diverged".
    """
    metric = records.metric
    return [
        (
            record["method"],
            "diverged" if records.diverged(record["method"]) else metric.number(number(record, metric.key)) or MISSING,
            *(text(number(record, key)) for _, key, text in _columns()),
        )
        for record in records.methods
    ]


def _columns() -> Iterator[tuple[str, str, Callable[[float], str]]]:
    """Yield heading, key in a method's closing record, and text of each number that every run has."""
    yield "kept/k", "kept_over_k", partial(_text, form=".2f")
    yield "sent/\nstep", "sent_bytes", bytes_text
    yield "compression", "compression", times_text
    for key, heading in STEP_TIMES.items():
        yield f"{heading}\nms", key, ms_text


def summary_table(records: Records) -> Table:
    """Build the table that ends a run; it fits 80 columns.

    Args:
        records: A run, finished or not.

    Returns:
        One row for each finished method, the others named in the caption.
    """
    table = Table(box=UNDERLINED, show_edge=False, padding=0, caption_justify="left", header_style="bold")
    for header in headers(records):
        first = header == "method"
        # Only the name may wrap, at its end if it must: a number cut short would be another number.
        table.add_column(header, justify="left" if first else "right", no_wrap=not first, overflow="fold")
    for row in summary_rows(records):
        table.add_row(*(Text(cell) for cell in (name_lines(row[0]), *row[1:])))
    if not records.methods:
        table.caption = Text("No method finished.")
    elif records.unfinished:
        table.caption = Text("Not finished: " + ", ".join(map(name_lines, records.unfinished)).replace("\n", ""))
    return table


def name_lines(name: str) -> str:
    r"""Break a long method name after some of its colons and commas, and replace what a plain font cannot draw.

    Example:
        >>> name_lines("randomk:feedback=false:A")
        'randomk:\nfeedback=false:A'
    """
    plain = "".join(character if " " <= character <= "~" else "?" for character in name)
    if len(plain) <= 12:
        return plain
    lines = [""]
    for part in re.split(r"(?<=[:,])(?=.)", plain):
        if lines[-1] and len(lines[-1]) + len(part) > _LINE:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def bytes_text(count: float) -> str:
    """Write a number of bytes with three digits and a decimal unit (1 kB = 1000 B).

    Example:
        >>> bytes_text(512), bytes_text(370236), bytes_text(999_999)
        ('512 B', '370 kB', '1.00 MB')
    """
    if not math.isfinite(count):
        return MISSING
    value, power = float(f"{count:.2e}"), 0
    while value >= 1000 and power < 5:
        value, power = value / 1000, power + 1
    decimals = 0 if power == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{decimals}f} {'kMGTP'[power - 1] if power else ''}B"


def times_text(factor: float) -> str:
    """Write a factor as a reader says it: 3.2x, 241x, 12,000x."""
    return _text(factor, ".1f" if factor < 9.95 else ",.0f", "x")


def ms_text(seconds: float) -> str:
    """Write a time in milliseconds, with two decimals below 10, one below 1000 and none above."""
    ms = 1000 * seconds
    return _text(ms, ".2f" if ms < 9.995 else ".1f" if ms < 999.95 else ",.0f")


def _text(value: float, form: str, unit: str = "") -> str:
    return f"{value:{form}}{unit}" if math.isfinite(value) else MISSING
