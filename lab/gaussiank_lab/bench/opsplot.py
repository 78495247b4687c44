"""The paper's operator figure from the rows of a run: time against size, a curve for each operator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gaussiank.durable import naming
from gaussiank_lab.bench.opstable import label, size_text
from gaussiank_lab.bench.rows import Row
from gaussiank_lab.report.plots import End, name_curves
from gaussiank_lab.report.records import number

# Okabe and Ito's palette, told apart with any colour vision; what repeats a colour has other dashes and marks.
_OURS = ("#0072B2", "#009E73", "#56B4E9", "#000000", "#0072B2", "#009E73", "#56B4E9", "#000000")
_PEERS = ("#D55E00", "#E69F00", "#CC79A7", "#8C6D00")
_MARKS = "osD^vPX*"
_CEILING = "#777777"


class Curve(NamedTuple):
    """Times of one operator over the sizes, in milliseconds."""

    name: str
    family: str
    numel: tuple[float, ...]
    ms: tuple[float, ...]


def curves(rows: Sequence[Row], law: str, density: float) -> list[Curve]:
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
        found.append(Curve(text, family, sizes, tuple(1000 * times[numel] for numel in sizes)))
    return found


def time_over_size(rows: Sequence[Row], law: str, density: float) -> Figure:
    """Draw operator time in ms against entries, both on log scales."""
    with matplotlib.style.context(["default", {"font.size": 10.0, "axes.edgecolor": "#555555"}]):
        figure = Figure(figsize=(6.6, 4.2), layout="constrained", facecolor="white")
        axes = figure.add_subplot(xlabel="entries", ylabel="time of one selection (ms)", xscale="log", yscale="log")
        first = rows[0]
        threads = f"{first['threads']} thread" + "s" * (first["threads"] > 1)
        axes.set_title(
            f"{law}, density {density:g} · {first['machine']}, {threads} · {str(first['date'])[:10]}",
            loc="left", fontsize=9, color="#444444",
        )  # fmt: skip
        ends, counts = [], {"ours": 0, "peer": 0, "ceiling": 0}
        for curve in curves(rows, law, density):
            place = counts[curve.family]
            counts[curve.family] += 1
            palette = {"ours": _OURS, "peer": _PEERS, "ceiling": (_CEILING,)}[curve.family]
            color = palette[place % len(palette)]
            axes.plot(
                curve.numel, curve.ms, color=color, marker=_MARKS[place % len(_MARKS)], markersize=4,
                linewidth=1.2 if curve.family == "peer" else 2.0,
                linestyle={"ours": "solid", "peer": (0, (5, 1.5)), "ceiling": (0, (1, 1))}[curve.family],
            )  # fmt: skip
            ends.append(End(curve.name, color, curve.numel[-1], curve.ms[-1]))
        axes.grid(visible=True, color="#E3E3E3", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.xaxis.set_major_locator(LogLocator(numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_text(int(value)) if value >= 1 else ""))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        return name_curves(figure, axes, ends)


def write_plot(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write the figure of the first law and smallest density as SVG and PNG.

    Returns:
        The files; none when nothing was measured.
    """
    measured = [row for row in rows if row["kind"] == "operator"]
    if not measured:
        return []
    law, density = measured[0]["law"], float(np.min([row["density"] for row in measured]))
    figure = time_over_size(rows, law, density)
    paths = [out / "operator_time.svg", out / "operator_time.png"]
    with naming(paths[0]):
        figure.savefig(paths[0], metadata={"Date": None})
    with naming(paths[1]):
        figure.savefig(paths[1], dpi=150)
    return paths
