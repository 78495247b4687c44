"""Figures of the cost model: scaling, the timeline of a step, and the maps of the studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import NDArray

from gaussiank.durable import naming
from gaussiank_lab.cluster.simulate import bits_text, count_text
from gaussiank_lab.cluster.studies import GainRow, ScaleRow
from gaussiank_lab.report.plots import SIZE_INCHES, End, name_curves
from gaussiank_lab.sim import Event, Prediction, Timeline, events

EDGES = (0.0, 0.95, 1.05, 1.5, 2.0, 5.0, 10.0, 1000.0)
SHADES = ("#8C8C8C", "#E8E8E8", "#C9E3F5", "#8FC7EA", "#56A8DC", "#1F7BB8", "#08477A")
LABELS = ("slower", "no change", "1.05–1.5x", "1.5–2x", "2–5x", "5–10x", "over 10x")


def gain_figure(rows: Sequence[GainRow]) -> Figure:
    """Draw the gain over bandwidth and model size, a panel for each number of workers."""
    counts = sorted({row.workers for row in rows})
    figure = Figure(figsize=(8.0, 3.4), layout="constrained", facecolor="white")
    panels: Any = figure.subplots(1, len(counts), sharey=True, squeeze=False)
    for axes, count in zip(panels[0], counts, strict=True):
        chosen = [row for row in rows if row.workers == count]
        x = sorted({row.bandwidth_bits_s for row in chosen})
        y = sorted({row.numel for row in chosen})
        grid = {(row.bandwidth_bits_s, row.numel): row.gain for row in chosen}
        gains = np.array([[grid[bandwidth, numel] for bandwidth in x] for numel in y])
        norm = BoundaryNorm(EDGES, len(SHADES))
        axes.pcolormesh(_edges(x), _edges(y), gains, cmap=ListedColormap(SHADES), norm=norm)
        _log_axes(axes)
        axes.set_title(f"{count} workers", fontsize=10)
    panels[0][0].set_ylabel("parameters")
    figure.supxlabel("bandwidth of a node's port", fontsize=10)
    handles = [
        Patch(facecolor=shade, edgecolor="#999999", label=label) for shade, label in zip(SHADES, LABELS, strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(LABELS), frameon=False, fontsize=8.5,
                  handlelength=1.1, columnspacing=1.1, handletextpad=0.4)  # fmt: skip
    return figure


def _edges(centres: Sequence[float]) -> NDArray[np.float64]:
    """Return the borders of cells around values that are spaced evenly on a logarithmic axis."""
    places = np.log(np.asarray(centres, dtype=np.float64))
    half = (places[1] - places[0]) / 2
    edges: NDArray[np.float64] = np.exp(np.append(places - half, places[-1] + half))
    return edges


def _log_axes(axes: Axes) -> None:
    axes.set(xscale="log", yscale="log", xticks=[1e8, 1e9, 1e10, 1e11, 1e12])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _round(bits_text(value)).replace(" ", "\n")))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _round(count_text(value))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize=8)


def _round(text: str) -> str:
    return text.replace(".00", "").replace(".0", "")


def scale_figure(rows: Sequence[ScaleRow]) -> Figure:
    """Draw the efficiency over local steps, a panel for each bandwidth between regions."""
    rates = sorted({row.bandwidth_bits_s for row in rows})
    names = list(dict.fromkeys(row.method for row in rows))
    figure = Figure(figsize=(8.0, 3.2), layout="constrained", facecolor="white")
    panels: Any = figure.subplots(1, len(rates), sharey=True, squeeze=False)
    for axes, rate in zip(panels[0], rates, strict=True):
        for name, color in zip(names, ("#777777", "#0072B2", "#D55E00"), strict=False):
            chosen = [row for row in rows if row.method == name and row.bandwidth_bits_s == rate]
            axes.plot([row.every for row in chosen], [100 * row.efficiency for row in chosen],
                      color=color, marker="o", ms=3, linewidth=1.8, label=name)  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks([1, 10, 100, 500], ["1", "10", "100", "500"])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0, 100)
        axes.set_title(f"{bits_text(rate)} a region".replace(".00", ""), fontsize=10)
        axes.grid(visible=True, color="#E3E3E3", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("efficiency of 10,000 workers (%)")
    figure.supxlabel("local steps between exchanges", fontsize=10)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


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
