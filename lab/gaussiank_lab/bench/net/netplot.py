"""Step time against the rate of the links, a curve for each method, from the rows of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from gaussiank.durable import naming
from gaussiank_lab.bench.rows import Row
from gaussiank_lab.report.plots import End, name_curves

# Okabe and Ito's palette, told apart with any colour vision; what repeats a colour has other dashes and marks.
_COLORS = {
    "ours": ("#0072B2", "#009E73", "#56B4E9", "#000000"),
    "ddp": ("#D55E00", "#E69F00", "#8C6D00", "#CC79A7"),
    "paper": ("#CC79A7", "#8C6D00", "#E69F00"),
    "alone": ("#777777",),
}
_DASHES = {"ours": "solid", "ddp": (0, (5, 1.5)), "paper": (0, (1, 1)), "alone": (0, (1, 3))}
_MARKS = "osD^vPX*"


def step_over_rate(rows: Sequence[Row]) -> Figure:
    """Draw step time in ms against the rates that were measured, fastest on the right; rows of one model and number."""
    rates = list(dict.fromkeys(row["rate"] for row in sorted(rows, key=_place)))
    with matplotlib.style.context(["default", {"font.size": 10.0, "axes.edgecolor": "#555555"}]):
        figure = Figure(figsize=(6.6, 4.2), layout="constrained", facecolor="white")
        axes = figure.add_subplot(xlabel="rate of each link", ylabel="time of a step (ms)", yscale="log")
        first = rows[0]
        axes.set_title(
            f"{first['model']}, {first['workers']} workers, density {first['density']:g} · {first['machine']} · "
            f"{str(first['date'])[:10]}",
            loc="left", fontsize=9, color="#444444",
        )  # fmt: skip
        ends, counts = [], dict.fromkeys(_COLORS, 0)
        for method in dict.fromkeys(row["method"] for row in rows):
            points = sorted((row for row in rows if row["method"] == method), key=_place)
            family = points[0]["family"]
            place = counts[family]
            counts[family] += 1
            color = _COLORS[family][place % len(_COLORS[family])]
            xs, ys = [rates.index(row["rate"]) for row in points], [1000 * row["step_s"] for row in points]
            lows = [1000 * (row["step_s"] - row["step_low_s"]) for row in points]
            highs = [1000 * (row["step_high_s"] - row["step_s"]) for row in points]
            axes.errorbar(
                xs, ys, yerr=(lows, highs), color=color, linestyle=_DASHES[family], marker=_MARKS[place % len(_MARKS)],
                markersize=4, linewidth=2.0 if family == "ours" else 1.2, elinewidth=0.8,
            )  # fmt: skip
            ends.append(End(method, color, xs[-1], ys[-1]))
        axes.set_xticks(range(len(rates)), rates)
        axes.grid(visible=True, axis="y", color="#E3E3E3", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return name_curves(figure, axes, ends)


def write_plots(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write a figure of each model and number of workers as SVG and PNG.

    Returns:
        The files; none when nothing was measured.
    """
    paths: list[Path] = []
    for model, workers in dict.fromkeys((row["model"], row["workers"]) for row in rows):
        chosen = [row for row in rows if (row["model"], row["workers"]) == (model, workers)]
        figure = step_over_rate(chosen)
        name = f"net_{model.replace(':', '-')}_{workers}"
        with naming(out / f"{name}.svg"):
            figure.savefig(out / f"{name}.svg", metadata={"Date": None})
        with naming(out / f"{name}.png"):
            figure.savefig(out / f"{name}.png", dpi=150)
        paths += [out / f"{name}.svg", out / f"{name}.png"]
    return paths


def _place(row: Row) -> tuple[bool, float]:
    """Sort rates; those without a limit come last."""
    return (row["rate_mbit"] is None, row["rate_mbit"] or 0.0)
