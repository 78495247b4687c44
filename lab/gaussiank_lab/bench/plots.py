"""The figures of the benchmarks: operator time against size, step time against the rate of links."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gaussiank.durable import naming
from gaussiank_lab.bench.rows import Row
from gaussiank_lab.bench.tables import label, size_text
from gaussiank_lab.report.plots import End, _plain, name_curves
from gaussiank_lab.report.records import number

# Okabe and Ito's palette, told apart with any colour vision; what repeats a colour has another mark.
_COLORS = {
    "ours": ("#0072B2", "#009E73", "#56B4E9", "#000000"),
    "peer": ("#D55E00", "#E69F00", "#CC79A7", "#8C6D00"),
    "ddp": ("#D55E00", "#E69F00", "#8C6D00", "#CC79A7"),
    "paper": ("#CC79A7", "#8C6D00", "#E69F00"),
    "ceiling": ("#777777",),
    "alone": ("#777777",),
}
_DASHES = {"ours": "solid", "peer": (0, (5, 1.5)), "ddp": (0, (5, 1.5)), "paper": (0, (1, 1)), "ceiling": (0, (1, 1))}
_MARKS = "osD^vPX*"


class PlottedCurve(NamedTuple):
    """One operator over the sizes, or one method over the rates.

    Attributes:
        name: as the legend has it.
        family: whose it is; gives colour and dashes.
        x: entries, or the number of the rate.
        ms: milliseconds at each.
        low_ms: how far below the lower quartile lies, or nothing.
        high_ms: how far above the upper one lies, or nothing.
    """

    name: str
    family: str
    x: tuple[float, ...]
    ms: tuple[float, ...]
    low_ms: tuple[float, ...] = ()
    high_ms: tuple[float, ...] = ()


def _drawn(found: Sequence[PlottedCurve], title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Draw curves on a logarithmic axis of times, with a legend."""
    figure = Figure(figsize=(6.6, 4.2), layout="constrained", facecolor="white")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, yscale="log")
    axes.set_title(title, loc="left", fontsize=9, color="#444444")
    ends, counts = [], dict.fromkeys(_COLORS, 0)
    for curve in found:
        place = counts[curve.family]
        counts[curve.family] += 1
        color = _COLORS[curve.family][place % len(_COLORS[curve.family])]
        axes.errorbar(
            curve.x, curve.ms, yerr=(curve.low_ms, curve.high_ms) if curve.low_ms else None, color=color,
            linestyle=_DASHES.get(curve.family, (0, (1, 3))), marker=_MARKS[place % len(_MARKS)], markersize=4,
            linewidth=2.0 if curve.family in ("ours", "ceiling") else 1.2, elinewidth=0.8,
        )  # fmt: skip
        ends.append(End(curve.name, color, curve.x[-1], curve.ms[-1]))
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    return name_curves(figure, axes, ends), axes


def _saved(figure: Figure, out: Path, name: str) -> list[Path]:
    """Write a figure as SVG and PNG."""
    paths = [out / f"{name}.svg", out / f"{name}.png"]
    with naming(paths[0]):
        figure.savefig(paths[0], metadata={"Date": None})
    with naming(paths[1]):
        figure.savefig(paths[1], dpi=150)
    return paths


def curves(rows: Sequence[Row], law: str, density: float) -> list[PlottedCurve]:
    """Return the curves of one law and density: the memory, ours with their hints on the fastest backend, the peers."""
    points: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        fits = row["kind"] != "skipped" and row["law"] == law and row["density"] == density
        if not fits or row["operator"] == "copy" or row.get("state") == "cold":
            continue
        backends = points.setdefault((label(row), row["family"]), {})
        backends.setdefault(row["backend"], {})[row["numel"]] = number(row, "seconds")
    found = []
    for (name, family), backends in points.items():
        backend, times = min(backends.items(), key=lambda item: item[1][max(item[1])])
        sizes = tuple(sorted(times))
        text = f"{name} ({backend})" if family == "ours" else name
        found.append(PlottedCurve(text, family, sizes, tuple(1000 * times[numel] for numel in sizes)))
    return found


@_plain()
def time_over_size(rows: Sequence[Row], law: str, density: float) -> Figure:
    """Draw operator time in ms against entries, both on log scales."""
    first = rows[0]
    threads = f"{first['threads']} thread" + "s" * (first["threads"] > 1)
    title = f"{law}, density {density:g} · {first['machine']}, {threads} · {str(first['date'])[:10]}"
    figure, axes = _drawn(curves(rows, law, density), title, "entries", "time of one selection (ms)")
    axes.set_xscale("log")
    axes.grid(visible=True, color="#E3E3E3", linewidth=0.8)
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_text(int(value)) if value >= 1 else ""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return figure


def write_ops_plot(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write the figure of the first law and smallest density as SVG and PNG.

    Returns:
        The files; none when nothing was measured.
    """
    measured = [row for row in rows if row["kind"] == "operator"]
    if not measured:
        return []
    law, density = measured[0]["law"], float(np.min([row["density"] for row in measured]))
    return _saved(time_over_size(rows, law, density), out, "operator_time")


@_plain()
def step_over_rate(rows: Sequence[Row]) -> Figure:
    """Draw step time in ms against the rates that were measured, fastest on the right; rows of one model and number."""
    rates = list(dict.fromkeys(row["rate"] for row in sorted(rows, key=_place)))
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted((row for row in rows if row["method"] == method), key=_place)
        found.append(
            PlottedCurve(
                method,
                points[0]["family"],
                tuple(float(rates.index(row["rate"])) for row in points),
                tuple(1000 * row["step_s"] for row in points),
                tuple(1000 * (row["step_s"] - row["step_low_s"]) for row in points),
                tuple(1000 * (row["step_high_s"] - row["step_s"]) for row in points),
            )
        )
    first = rows[0]
    title = (
        f"{first['model']}, {first['workers']} workers, density {first['density']:g} · {first['machine']} · "
        f"{str(first['date'])[:10]}"
    )
    figure, axes = _drawn(found, title, "rate of each link", "time of a step (ms)")
    axes.set_xticks(range(len(rates)), rates)
    axes.grid(visible=True, axis="y", color="#E3E3E3", linewidth=0.8)
    return figure


def write_net_plots(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write a figure of each model and number of workers as SVG and PNG.

    Returns:
        The files; none when nothing was measured.
    """
    paths: list[Path] = []
    for model, workers in dict.fromkeys((row["model"], row["workers"]) for row in rows):
        chosen = [row for row in rows if (row["model"], row["workers"]) == (model, workers)]
        paths += _saved(step_over_rate(chosen), out, f"net_{model.replace(':', '-')}_{workers}")
    return paths


def _place(row: Row) -> tuple[bool, float]:
    """Sort rates; those without a limit come last."""
    return (row["rate_mbit"] is None, row["rate_mbit"] or 0.0)
