"""Figures of the two studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import NDArray

from .studies import GainRow, ScaleRow
from .tables import bits_text, count_text

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
