"""Figures of one run, drawn from its records: test metric, loss, traffic, kept entries and time."""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    EngFormatter,
    Formatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from numpy.typing import NDArray

from gaussiank_lab.report.records import Records, number
from gaussiank_lab.report.summary import name_lines

SIZE_INCHES = (5.6, 3.4)  # at 700 px wide, 10-point text is 17 px high; at 360 px still 9


class End(NamedTuple):
    """The last point of a curve, and how the legend names it."""

    text: str
    color: str
    x: float
    y: float


def name_curves(figure: Figure, axes: Axes, ends: Sequence[End]) -> Figure:
    """Add a legend beside the axes, in the order in which the curves end, from top to bottom."""
    if not axes.has_data():
        axes.text(0.5, 0.5, "no data in these records", transform=axes.transAxes, ha="center", color="#555555")
        axes.set(xticks=[], yticks=[])
    if not ends:
        return figure
    ordered = sorted(ends, key=lambda end: -end.y)
    handles = [_line_of(axes, end) for end in ordered]
    legend = axes.legend(
        handles, [end.text for end in ordered], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False,
        handlelength=2.4, labelcolor="linecolor",
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    lines = sum(end.text.count("\n") + 1 for end in ends)
    figure.set_figheight(SIZE_INCHES[1] * max(1, lines / 14))  # 14 lines of text fill the usual height
    return figure


def _line_of(axes: Axes, end: End) -> Line2D:
    """Return the curve that ends there, for the legend to show its colour, dashes and mark."""
    for line in reversed(axes.lines):
        x, y = np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)
        if line.get_color() == end.color and np.any((x == end.x) & (y == end.y)):
            return line
    return Line2D([], [], color=end.color)


# Okabe and Ito's palette, told apart with any colour vision: five colours for methods, three for the parts of a step.
METHOD_COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
METHOD_DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.5)))
PARTS = (
    ("compute_s", "compute", "#56B4E9"),
    ("select_s", "select", "#E69F00"),
    ("communicate_s", "communicate", "#F0E442"),
)
OTHER_COLOR = "#C8C8C8"
GRID_COLOR = "#E3E3E3"
RAW_POINTS = 1000  # a raw curve is thinned to about this many points, so that a report stays small
TEXT_POINTS = 10.0

Floats = NDArray[np.float64]


class Style(NamedTuple):
    """How one method is drawn in every figure."""

    color: str
    dashes: Any


def method_styles(records: Records) -> dict[str, Style]:
    """Give every method of a run its colour and dashes, the same in every figure.

    Five colours in the order the methods ran; the sixth method starts again with dashes.
    """
    count = len(METHOD_COLORS)
    return {
        name: Style(METHOD_COLORS[i % count], METHOD_DASHES[i // count % len(METHOD_DASHES)])
        for i, name in enumerate(records.names)
    }


@contextmanager
def _plain() -> Iterator[None]:
    """Draw with matplotlib's own defaults, whatever the user's matplotlibrc says."""
    with matplotlib.style.context(["default", {"font.size": TEXT_POINTS, "axes.edgecolor": "#555555"}]):
        yield


@_plain()
def metric_over_steps(records: Records) -> Figure:
    """Draw what the run is judged by, on the test set, against the step it was measured at."""
    figure, axes = _canvas("step", _metric_label(records))
    ends = []
    for name, style in method_styles(records).items():
        step, value = records.columns(name, "step", records.metric.key, kind="eval")
        ends += _curve(axes, records, name, step, records.metric.scale * value, style)
    return name_curves(figure, axes, ends)


@_plain()
def loss_over_steps(records: Records) -> Figure:
    """Draw training loss: the loss of every step faintly, its moving mean over about a fortieth of the run on top."""
    figure, axes = _canvas("step", "training loss")
    ends = []
    for name, style in method_styles(records).items():
        step, loss = records.columns(name, "step", "loss")
        ends += _noisy_curve(axes, records, name, step, loss, style)
    low, high = axes.dataLim.intervaly
    if ends and low > 0 and high / low > 50:  # a loss that exploded would flatten the others
        axes.set_yscale("log")
    return name_curves(figure, axes, ends)


@_plain()
def metric_over_bytes(records: Records) -> Figure:
    """Draw what the run is judged by, on the test set, against the bytes one worker had sent by then (log scale)."""
    figure, axes = _canvas("sent per worker", _metric_label(records))
    ends = []
    for name, style in method_styles(records).items():
        step, value = records.columns(name, "step", records.metric.key, kind="eval")
        sent = _sent_by(records, name, step)
        wire = sent > 0  # one worker sends nothing, and a log axis has no zero
        ends += _curve(axes, records, name, sent[wire], records.metric.scale * value[wire], style)
    if ends:
        low, high = axes.dataLim.intervalx
        _log_axis(axes, "x", low, high, EngFormatter(unit="B"))
    return name_curves(figure, axes, ends)


@_plain()
def kept_over_steps(records: Records) -> Figure:
    """Draw entries kept over entries asked for (log scale), every step faintly, its moving mean on top.

    Methods that keep everything are left out. The shaded band, 2/3 to 4/3, is what the published Gaussian_k aims at.
    """
    figure, axes = _canvas("step", "kept / k")
    ends = []
    low, high = 0.5, 2.0
    exact = 0
    for name, style in method_styles(records).items():
        if _keeps_all(records, name):
            continue
        step, kept, k = records.columns(name, "step", "kept", "k")
        ratio = np.divide(kept, k, out=np.full_like(k, np.nan), where=k > 0)
        positive = ratio[ratio > 0]
        low, high = min([low, *positive * 0.8]), max([high, *positive * 1.25])
        # Exact methods lie on one another at 1: the ones below are wider, so that each shows an edge.
        ends += _noisy_curve(axes, records, name, step, ratio, style)
        if ratio.size and np.all(ratio == 1):
            exact += 1
            axes.lines[-1].set(linewidth=1.8 * exact, zorder=2 - 0.1 * exact)
    if ends:
        axes.axhspan(2 / 3, 4 / 3, color="#EFEFEF", zorder=0)
        axes.axhline(1.0, color="#777777", linewidth=0.8, zorder=1)
        _log_axis(axes, "y", low, high, FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(low, high)
    return name_curves(figure, axes, ends)


@_plain()
def norms_over_rounds(records: Records) -> Figure:
    """Draw what local steps learn in a round (strong) and what waits in the residual (faint), as norms on rank 0."""
    figure, axes = _canvas("step", "norm of the difference, residual")
    ends = []
    for name, style in method_styles(records).items():
        step, learnt, waits = records.columns(name, "step", "difference_norm", "residual_norm", kind="round")
        if np.isfinite(waits).any():
            axes.plot(step, waits, color=style.color, linestyle=style.dashes, alpha=0.4, linewidth=1.0)
        ends += _curve(axes, records, name, step, learnt, style)
    return name_curves(figure, axes, ends)


@_plain()
def time_per_step(records: Records) -> Figure:
    """Draw the median step of every finished method as a bar of compute, selection and communication, in ms.

    The number is the whole step; what the three parts do not cover is drawn as "other".
    """
    figure, axes = _canvas("median time per step (ms)", "")
    styles = method_styles(records)
    rows = [record for record in records.methods if math.isfinite(number(record, "step_s"))]
    whole = 1000 * np.array([number(record, "step_s") for record in rows])
    end = np.zeros(len(rows))
    parts = [
        (label, color, 1000 * np.nan_to_num([number(record, key) for record in rows])) for key, label, color in PARTS
    ]
    parts.append(("other", OTHER_COLOR, np.maximum(0, whole - sum(width for _, _, width in parts))))
    for label, color, width in parts if rows else []:
        axes.barh(range(len(rows)), width, left=end, color=color, height=0.62, label=label)
        end += width
    for index, (at, value) in enumerate(zip(end, whole, strict=True)):
        axes.annotate(f"{value:.3g} ms", (at, index), (4, 0), textcoords="offset points", va="center")
    if rows:
        figure.set_figheight(1 + 0.45 * len(rows))
        axes.set_yticks(range(len(rows)), [name_lines(record["method"]) for record in rows], parse_math=False)
        for tick, record in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color(styles[record["method"]].color)
        axes.set(xlim=(0, 1.16 * max(end.max(), 1e-3)), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, handlelength=1, borderpad=0.2)
    return name_curves(figure, axes, [])


def figure_svg(figure: Figure) -> str:
    """Write a figure as one ``<svg>`` element to stand inside an HTML page.

    Text becomes outlines, so the page needs no font. No prolog, metadata, namespace or comment remains, nothing refers
    outside the element, and every id begins with a hash of the drawing: the same figure gives the same bytes, and
    several figures share a page.
    """
    out = io.StringIO()
    with _plain(), matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "gaussiank"}):
        figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    axes = figure.axes[0]
    label = html.escape(" against ".join(text for text in (axes.get_ylabel(), axes.get_xlabel()) if text))
    # The style element removed above said the same to the whole page; as attributes it reaches this drawing only.
    head = f'<svg viewBox="{box[1]}" role="img" aria-label="{label}" stroke-linejoin="round" stroke-linecap="butt">'
    svg = head + svg[svg.index(">") + 1 :].strip()
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)  # 0.01 point is enough
    svg = re.sub(r"\s+", " ", svg).replace("> <", "><").replace("xlink:href", "href")
    prefix = f"g{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    return re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{prefix}", svg)


def smooth(values: Floats, window: int) -> Floats:
    """Return the centred moving mean over ``window`` values, the next odd number if even.

    NaN is left out of the means and stays NaN. At both ends the window is cut short.
    """
    if not values.size:
        return values
    known = np.isfinite(values)
    half = window // 2
    inside = slice(half, half + values.size)
    total = np.convolve(np.where(known, values, 0.0), np.ones(2 * half + 1))[inside]
    count = np.convolve(known, np.ones(2 * half + 1))[inside]
    mean: Floats = np.divide(total, count, out=np.full(values.shape, np.nan), where=known)
    return mean


def _metric_label(records: Records) -> str:
    metric = records.metric
    return f"test {metric.name} ({metric.unit})"


def _canvas(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCHES, layout="constrained", facecolor="white")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.grid(visible=True, color=GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if xlabel == "step":  # there is no half of one
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    return figure, axes


def _curve(axes: Axes, records: Records, name: str, x: Floats, y: Floats, style: Style) -> list[End]:
    """Plot one method and return where its name belongs; nothing when it has no point."""
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return []
    marker = "o" if known.sum() <= 30 else ""
    axes.plot(x, y, color=style.color, linestyle=style.dashes, linewidth=1.8, marker=marker, ms=3, label=name)
    text = name_lines(name) + ("\ndiverged" if records.diverged(name) else "")
    return [End(text, style.color, float(x[known][-1]), float(y[known][-1]))]


def _noisy_curve(axes: Axes, records: Records, name: str, x: Floats, y: Floats, style: Style) -> list[End]:
    if not np.isfinite(y).any():
        return []
    axes.plot(*_thin(x, y), color=style.color, alpha=0.25, linewidth=0.6, label=f"{name} raw")
    return _curve(axes, records, name, *_thin(x, smooth(y, y.size // 40)), style)


def _thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Keep the lowest and highest point of every bin, so that a long curve stays small and no peak is lost."""
    if x.size <= RAW_POINTS:
        return x, y
    kept = [0, x.size - 1]
    for part in np.array_split(np.arange(x.size), RAW_POINTS // 2):
        known = part[np.isfinite(y[part])]
        kept += [known[np.argmin(y[known])], known[np.argmax(y[known])]] if known.size else [part[0]]
    chosen = np.unique(kept)
    return x[chosen], y[chosen]


def _sent_by(records: Records, name: str, steps: Floats) -> Floats:
    """Sum the bytes a worker sent up to each of ``steps``; a record stands for the steps since the one before it."""
    step, sent = records.columns(name, "step", "sent_bytes")
    step, sent = step[np.isfinite(step)], sent[np.isfinite(step)]
    total = np.concatenate(([0.0], np.cumsum(np.diff(step, prepend=0) * np.nan_to_num(sent))))
    return total[np.searchsorted(step, steps, side="right")]


def _keeps_all(records: Records, name: str) -> bool:
    k, numel = records.columns(name, "k", "numel")
    return name.partition(":")[0] == "dense" or bool(k.size and np.all(k >= numel))


def _log_axis(axes: Axes, side: Literal["x", "y"], low: float, high: float, formatter: Formatter) -> None:
    axes.set(**{f"{side}scale": "log"})
    axis = axes.xaxis if side == "x" else axes.yaxis
    if low > 0 and high / low < 4:  # too short for powers of ten
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if low > 0 and high / low < 100 else (1,), numticks=12))
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(NullFormatter())
