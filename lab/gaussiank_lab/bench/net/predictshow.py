"""Prints what the cost model predicts beside what a run of the network lab has measured."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gaussiank_lab.bench.opstable import ms_text
from gaussiank_lab.bench.rows import read_rows
from gaussiank_lab.report.summary import UNDERLINED

from .predict import Judged, judge

TIE = 0.05
"""Measured times that differ by less are repeated in another order as often as not."""


def show_predictions(out: Path, console: Console) -> None:
    """Print every setting of a run, and how far off the half is that the fit has not seen.

    Args:
        out: directory that ``bench net`` has written.
        console: where to print.

    Raises:
        FileNotFoundError: it holds no rows.
        ValueError: too few that the cost model knows.
    """
    knobs, judged = judge(read_rows(out))
    table = Table(box=UNDERLINED, show_edge=False, padding=0, header_style="bold")
    for place, header in enumerate(("setting", "method", "measured\nms", "predicted\nms", "error\n%", "held\nout")):
        table.add_column(header, justify="left" if place < 2 else "right", no_wrap=place > 0, overflow="fold")
    for one in judged:
        setting = f"{one.row['model']}, {one.row['workers']} workers, {one.row['rate']}"
        times = (ms_text(one.row["step_s"]), ms_text(one.predicted_s))
        table.add_row(setting, one.row["method"], *times, f"{100 * one.error:+.0f}", "*" if one.held_out else "")
    console.print(table)
    console.print(
        f"\nFitted: {100 * knobs.reach:.0f} % of a rate arrives, {knobs.unshaped_bits_s / 1e9:.1f} Gbit/s unshaped, "
        f"computing spreads by {100 * knobs.spread:.0f} %. Two workers wait for {1e3 * knobs.ring_s:.2f} ms in an "
        f"all-reduce, growing as their number to the {knobs.ring_growth:.1f}; for {1e3 * knobs.waiting_s:.2f} ms, to "
        f"the {knobs.growth:.1f}, in other first operations, and {1e3 * knobs.later_s:.2f} ms, to the "
        f"{knobs.later_growth:.1f}, in each that follows; a split takes {1e3 * knobs.pair_s:.2f} ms for each pair.",
        highlight=False,
    )
    console.print(verdict(judged), highlight=False)


def verdict(judged: Sequence[Judged]) -> str:
    """Sum up in a sentence how good the predictions are."""
    held = [abs(one.error) for one in judged if one.held_out]
    right, clear = order_right(judged), order_right(judged, tie=TIE)
    order = (
        f" The faster of two methods is named in {100 * right:.0f} % of pairs, and in {100 * clear:.0f} % of those "
        f"that differ by over {100 * TIE:.0f} %."
        if math.isfinite(right)
        else ""
    )
    _, worst = max(regrets(judged), key=lambda pair: pair[1])
    return (
        f"Held out: median error {100 * statistics.median(held):.0f} %, worst {100 * max(held):.0f} %, in {len(held)} "
        f"of {len(judged)} settings.{order} Taking the method that is predicted to be fastest costs at most "
        f"{100 * worst:.0f} % over the fastest measured."
    )


def regrets(judged: Sequence[Judged]) -> list[tuple[str, float]]:
    """Return, for each link, the method predicted to be fastest, and by how much it was slower than the fastest."""
    links: dict[tuple[str, int, str], list[Judged]] = {}
    for one in judged:
        links.setdefault((one.row["model"], one.row["workers"], one.row["rate"]), []).append(one)
    found = []
    for same in links.values():
        chosen = min(same, key=lambda one: one.predicted_s).row
        found.append((chosen["method"], chosen["step_s"] / min(one.row["step_s"] for one in same) - 1))
    return found


def order_right(judged: Sequence[Judged], tie: float = 0.0) -> float:
    """Return the share of pairs of methods, on one link, of which the faster one is predicted; NaN without a pair.

    Args:
        judged: settings with their predictions.
        tie: how much slower, as a share, the slower one must have been measured for a pair to count.
    """
    pairs = [
        (first.row["step_s"] < second.row["step_s"]) == (first.predicted_s < second.predicted_s)
        for first, second in itertools.combinations(judged, 2)
        if all(first.row[name] == second.row[name] for name in ("model", "workers", "rate"))
        and abs(math.log(first.row["step_s"] / second.row["step_s"])) >= math.log1p(tie)
    ]
    return sum(pairs) / len(pairs) if pairs else math.nan
