"""The rows of the benchmarks as tables of a terminal, 80 columns wide."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gaussiank_lab.bench.rows import Row
from gaussiank_lab.report.records import number
from gaussiank_lab.report.summary import MISSING, UNDERLINED

OPS_HEADERS = ("operator", "backend", "ms", "% of\nadd", "GB/s", "kept/k", "recall")


def label(row: Row) -> str:
    """Name a row's operator as people read it: without hint it is cold."""
    return f"{row['operator']} cold" if row.get("state") == "cold" else str(row["operator"])


def ops_title(row: Row) -> str:
    """Name what was measured together.

    Example:
        >>> ops_title({"numel": 10_000_000, "law": "normal", "density": 0.001})
        '1e7 entries, density 0.001, normal'
    """
    return f"{size_text(row['numel'])} entries, density {row['density']:g}, {row['law']}"


def size_text(numel: int) -> str:
    """Write a number of entries as a power of ten if it is near one.

    Example:
        >>> size_text(100_000), size_text(199_210), size_text(50_000_000)
        ('1e5', '199,210', '5e7')
    """
    power = int(math.log10(numel))
    return f"{numel // 10**power}e{power}" if numel % 10**power == 0 else f"{numel:,}"


def ops_table(rows: Sequence[Row]) -> Group:
    """Build the table of one setting, the fastest first; what was skipped stands below it.

    Of our operators, only the fastest backend and the reference are shown.
    """
    table = columns(OPS_HEADERS, left=2)
    measured = sorted((row for row in rows if row["kind"] != "skipped"), key=lambda row: number(row, "seconds"))
    seen: set[str] = set()
    for row in measured:
        if row["family"] == "ours" and row["backend"] != "reference" and label(row) in seen:
            continue
        seen.add(label(row))
        table.add_row(
            Text(label(row), style="bold" if row["family"] == "ours" else ""),
            row["backend"],
            ms_text(number(row, "seconds")),
            plain_text(100 * number(row, "of_ceiling")),
            plain_text(number(row, "gb_per_s")),
            plain_text(number(row, "kept_over_k")),
            plain_text(number(row, "recall")),
        )
    skipped = [f"{label(row)} ({row['backend']}): {row['reason']}" for row in rows if row["kind"] == "skipped"]
    below = [Text("Skipped: " + "; ".join(skipped) + ".")] if skipped else []
    return Group(Text(ops_title(rows[0]), style="bold"), table, *below)


def laws_table(rows: Sequence[Row]) -> Group | None:
    """Build the table of kept/k over the laws, at the largest size and smallest density; None for one law."""
    rows = [row for row in rows if row["kind"] == "operator" and row["state"] != "cold"]
    laws = list(dict.fromkeys(row["law"] for row in rows))
    if len(laws) < 2:
        return None
    numel, density = max(row["numel"] for row in rows), min(row["density"] for row in rows)
    kept = {
        (row["operator"], row["law"]): number(row, "kept_over_k")
        for row in rows
        if row["numel"] == numel and row["density"] == density
    }
    title = f"kept/k of {size_text(numel)} entries, density {density:g}, by law"
    table = columns(("operator", *(law.replace("student-", "").replace("triangular", "triang.") for law in laws)))
    for operator in dict.fromkeys(operator for operator, _ in kept):
        table.add_row(operator, *(plain_text(kept.get((operator, law), math.nan)) for law in laws))
    return Group(Text(title, style="bold"), table)


def columns(headers: Sequence[str], left: int = 1) -> Table:
    """Start a table: its first columns to the left, the others to the right."""
    table = Table(box=UNDERLINED, show_edge=False, padding=0, header_style="bold")
    for place, header in enumerate(headers):
        table.add_column(header, justify="left" if place < left else "right", no_wrap=place > 0, overflow="fold")
    return table


def ms_text(seconds: float) -> str:
    """Write a time in milliseconds with three digits.

    Example:
        >>> ms_text(0.0000123), ms_text(0.00412), ms_text(1.5)
        ('0.0123', '4.12', '1,500')
    """
    return plain_text(1000 * seconds)


def plain_text(value: float) -> str:
    """Write a number with three digits and without an exponent.

    Example:
        >>> plain_text(0.00512), plain_text(97.04), plain_text(22.46), plain_text(0.0)
        ('0.00512', '97.0', '22.5', '0')
    """
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


NET_HEADERS = ("method", "step\nms", "quartiles", "x ddp", "select", "exch.", "finish", "wait", "kB\nsent", "off\n%")


def net_title(row: Row) -> str:
    """Name what was measured together.

    Example:
        >>> net_title({"model": "lenet5", "workers": 4, "rate": "20mbit", "density": 0.01, "batch_size": 8})
        'lenet5, 4 workers, 20mbit, density 0.01, batch 8'
    """
    batch = "" if row["model"].startswith("vector") else f", batch {row['batch_size']}"
    return f"{row['model']}, {row['workers']} workers, {row['rate']}, density {row['density']:g}{batch}"


def net_table(rows: Sequence[Row]) -> Group:
    """Build the table of one setting, in the order of the methods; all times in milliseconds."""
    table = columns(NET_HEADERS)
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
    title = Text(net_title(rows[0]), style="bold")
    target, below = rows[0]["until_loss"], []
    if seldom := [f"{row['method']}, every {row['period']}" for row in rows if row["period"] > 1]:
        below.append(Text(f"Steps are means over whole rounds of methods that exchange seldom: {'; '.join(seldom)}."))
    if target is not None:
        below.append(Text(f"Time to a loss of {target:g}: {', '.join(seconds) or 'none reached it'}."))
    return Group(title, table, *below)


RACE_HEADERS = (
    "method",
    "loss\nin the end",
    "after\nsteps",
    "steps\nto it",
    "step\nms",
    "seconds",
    "x ddp",
    "kB\nsent",
)


def race_table(rows: Sequence[Row]) -> Group:
    """Build the table of seconds to a loss on one link."""
    table = columns(RACE_HEADERS)
    for row in rows:
        table.add_row(
            Text(row["method"]),
            f"{row['last_loss']:.3f}",
            f"{row['trained_steps']:,}",
            MISSING if row["steps"] is None else f"{row['steps']:.0f}",
            ms_text(row["step_s"]),
            plain_text(number(row, "seconds")),
            plain_text(number(row, "times_faster")),
            plain_text(number(row, "accounted_bytes") / 1000),
        )
    first = rows[0]
    title = f"{first['model']}, {first['workers']} workers, {first['rate']}: seconds to a test loss of"
    return Group(Text(f"{title} {first['target_loss']:.3f}", style="bold"), table)


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
