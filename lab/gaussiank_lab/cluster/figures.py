"""Figures of predictions and timelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from gaussiank.durable import naming
from gaussiank_lab.report.plots import SIZE_INCHES, End, name_curves
from gaussiank_lab.sim import Event, Prediction, Timeline, events

COLORS = ("#000000", "#777777", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PARTS = {
    "forward": "#BBBBBB",
    "backward": "#56B4E9",
    "select": "#E69F00",
    "exchange": "#F0E442",
    "decode": "#CC79A7",
    "optimizer": "#777777",
}


def scaling_figure(predictions: Sequence[Prediction], names: Sequence[str]) -> Figure:
    """Draw scaling efficiency, in percent, over workers, of the named methods; a name stands at its curve's end."""
    figure, axes = canvas("workers", "scaling efficiency (%)")
    ends = []
    for name, color in zip(names, COLORS, strict=False):
        rows = [row for row in predictions if row.method == name]
        x, y = [row.workers for row in rows], [100 * row.efficiency for row in rows]
        axes.plot(x, y, color=color, linewidth=1.8, marker="o", ms=3, label=name)
        ends.append(End(name, color, float(x[-1]), y[-1]))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 103)
    return name_curves(figure, axes, ends)


def timeline_figure(timelines: Sequence[Timeline]) -> Figure:
    """Draw the first step of one worker under each method: what computes, what is under way, what waits."""
    figure, axes = canvas("ms", "")
    figure.set_figheight(1.2 + 0.75 * len(timelines))
    rows = [("compute", 0.0), ("network", -0.28), ("decode", -0.5)]
    used: dict[str, Any] = {}
    for index, timeline in enumerate(timelines):
        for event in events(timeline):
            if event.step == 0 and event.worker == 0:
                used[event.name] = _bar(axes, event, dict(rows)[event.lane] - 1.2 * index)
    axes.set_yticks(
        [-1.2 * index for index in range(len(timelines))],
        [f"{timeline.method.name}\n{1000 * timeline.closed[0]:.3g} ms" for timeline in timelines],
        parse_math=False,
    )
    axes.set_ylim(-1.2 * len(timelines) + 0.5, 0.35)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1000 * max(float(timeline.closed[0]) for timeline in timelines))
    shown = [name for name in PARTS if name in used]
    handles = [used[name] for name in shown]
    axes.legend(
        handles, shown, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, handlelength=1,
        columnspacing=1, handletextpad=0.4,
    )  # fmt: skip
    return figure


def _bar(axes: Axes, event: Event, y: float) -> Any:
    height = 0.26 if event.lane == "compute" else 0.2
    return axes.broken_barh(
        [(1000 * event.start_s, 1000 * (event.end_s - event.start_s))],
        (y - height / 2, height),
        color=PARTS[event.name],
        edgecolor="white",
        linewidth=0.2,
    )


def canvas(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return an empty figure of the report's size, and its axes."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained", facecolor="white")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.grid(visible=True, color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> Path:
    """Write a figure; an SVG of the same figure has the same bytes."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "gaussiank"}), naming(path):
        figure.savefig(path, facecolor="white", metadata=metadata, dpi=150)
    return path
