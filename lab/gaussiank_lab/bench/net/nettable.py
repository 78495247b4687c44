"""The rows of the network benchmark as tables of a terminal, 80 columns wide."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gaussiank_lab.bench.opstable import ms_text, plain_text
from gaussiank_lab.bench.rows import Row
from gaussiank_lab.report.records import number
from gaussiank_lab.report.summary import MISSING, UNDERLINED

HEADERS = ("method", "step\nms", "quartiles", "x ddp", "select", "exch.", "finish", "wait", "kB\nsent", "off\n%")


def setting_title(row: Row) -> str:
    """Name what was measured together.

    Example:
        >>> setting_title({"model": "lenet5", "workers": 4, "rate": "20mbit", "density": 0.01, "batch_size": 8})
        'lenet5, 4 workers, 20mbit, density 0.01, batch 8'
    """
    batch = "" if row["model"].startswith("vector") else f", batch {row['batch_size']}"
    return f"{row['model']}, {row['workers']} workers, {row['rate']}, density {row['density']:g}{batch}"


def setting_table(rows: Sequence[Row]) -> Group:
    """Build the table of one setting, in the order of the methods; all times in milliseconds."""
    table = Table(box=UNDERLINED, show_edge=False, padding=0, header_style="bold")
    for place, header in enumerate(HEADERS):
        table.add_column(header, justify="right" if place else "left", no_wrap=place > 0, overflow="fold")
    for row in rows:
        table.add_row(
            Text(row["method"], style="bold" if row["family"] == "ours" else ""),
            ms_text(row["step_s"]),
            f"{_short(row['step_low_s'])}-{_short(row['step_high_s'])}",
            plain_text(number(row, "speedup")),
            *(_short(number(row, f"{phase}_s")) for phase in ("select", "exchange", "finish", "wait")),
            plain_text(number(row, "accounted_bytes") / 1000),
            _off(row),
        )
    seconds = [f"{row['method']} {row['loss_s']:.2f} s" for row in rows if row["loss_s"] is not None]
    title = Text(setting_title(rows[0]), style="bold")
    target = rows[0]["until_loss"]
    if target is None:
        return Group(title, table)
    below = Text(f"Time to a loss of {target:g}: {', '.join(seconds) or 'none reached it'}.")
    return Group(title, table, below)


def off_percent(row: Row) -> float:
    """Return by how much the kernel counted more than was accounted, without headers of packets; NaN if unknown."""
    counted, accounted = number(row, "kernel_sent_content_bytes"), number(row, "accounted_bytes")
    return 100 * (counted / accounted - 1) if accounted else math.nan


def _off(row: Row) -> str:
    percent = off_percent(row)
    return f"{percent:+.1f}" if math.isfinite(percent) else MISSING


def _short(seconds: float) -> str:
    """Write milliseconds in at most five characters.

    Example:
        >>> _short(0.00123), _short(0.0234), _short(12.3)
        ('1.2', '23', '12300')
    """
    if not math.isfinite(seconds):
        return MISSING
    ms = 1000 * seconds
    return f"{ms:.1f}" if abs(ms) < 10 else f"{ms:.0f}"
