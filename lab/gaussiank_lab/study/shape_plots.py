"""Figures of what vectors look like: distributions at several times, ordered squares, energy over densities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gaussiank_lab.labels import name_curves
from gaussiank_lab.plots import METHOD_COLORS, METHOD_DASHES, _canvas, _log_axis, _plain
from gaussiank_lab.study.fit import distribution, histogram
from gaussiank_lab.study.shape import pi_squared
from gaussiank_lab.study.sketch import Floats
from gaussiank_lab.study.study import Study, StudySample
from gaussiank_lab.study.summary import asked_density
from gaussiank_lab.theory import BOUNDS, Normal

GREY = "#777777"
DASHED = (0, (4, 2))
TIMES = 5  # samples drawn side by side
NAMES = {"grad": "gradient g", "residual": "residual e", "accumulated": "accumulated u"}


def moments_of(study: Study) -> list[StudySample]:
    """Return up to five samples, spread over the run, the first and the last among them."""
    places = np.unique(np.linspace(0, len(study.samples) - 1, TIMES).round().astype(int))
    return [study.samples[place] for place in places]


def _time_colors(count: int) -> list[str]:
    """Return colours from light to dark; the last is the latest."""
    shades = [1.0] if count == 1 else np.linspace(0.22, 1.0, count)
    return [matplotlib.colors.to_hex(color) for color in matplotlib.colormaps["viridis_r"](shades)]


@_plain()
def distributions(study: Study, vector: str) -> Figure:
    """Draw the density of g, e or u over its root mean square (log scale) at five times, and a normal law."""
    figure, axes = _canvas(f"{NAMES[vector]} / root mean square", "probability density")
    chosen = [sample for sample in moments_of(study) if vector in sample.vectors]
    ends = []
    for sample, color in zip(chosen, _time_colors(len(chosen)), strict=True):
        sketch = sample.vectors[vector]
        edges, density = histogram(sketch)
        if edges.size:
            rms = np.sqrt(sketch.square_sum / sketch.numel)
            axes.stairs(density * rms, edges / rms, color=color, linewidth=1.5, baseline=None)
            ends.append((sample.step, color))
    if ends:
        points = np.linspace(-6, 6, 400)
        axes.plot(points, Normal().pdf(points), color=GREY, linestyle=DASHED, linewidth=1.2)
        axes.set(xlim=(-8, 8), ylim=(1e-6, None), yscale="log")
        _key(axes, [(f"step {step}", color, "solid") for step, color in ends] + [("normal law", GREY, DASHED)])
    return name_curves(figure, axes, [])


@_plain()
def cumulative(study: Study) -> Figure:
    """Draw the distribution function of what is selected from, over its root mean square, at five times."""
    figure, axes = _canvas("entry / root mean square", "share of entries below")
    entries: list[tuple[str, str, Any]] = []
    chosen = moments_of(study)
    for sample, color in zip(chosen, _time_colors(len(chosen)), strict=True):
        sketch = sample.vectors[sample.selected]
        points, share = distribution(sketch)
        if points.size:
            axes.plot(points / np.sqrt(sketch.square_sum / sketch.numel), share, color=color, linewidth=1.5)
            entries.append((f"step {sample.step}", color, "solid"))
    if entries:
        points = np.linspace(-4, 4, 400)
        axes.plot(points, Normal().cdf(points), color=GREY, linestyle=DASHED, linewidth=1.2)
        axes.set(xlim=(-4, 4), ylim=(0, 1))
        _key(axes, [*entries, ("normal law", GREY, DASHED)])
    return name_curves(figure, axes, [])


@_plain()
def pi_against_line(study: Study) -> Figure:
    """Draw pi^2, the ordered squares over the largest, and the line 1 - i/d that the paper compares it with."""
    figure, axes = _canvas("place i / d, from the largest entry", "pi² = u² / max u²")
    entries: list[tuple[str, str, Any]] = []
    chosen = moments_of(study)
    for sample, color in zip(chosen, _time_colors(len(chosen)), strict=True):
        sketch = sample.vectors[sample.selected]
        if sketch.square_sum > 0:
            axes.plot(*pi_squared(sketch), color=color, linewidth=1.5)
            entries.append((f"step {sample.step}", color, "solid"))
    if entries:
        places = np.linspace(0, 1, 400)
        axes.plot(places, 1 - places, color=GREY, linestyle=DASHED, linewidth=1.2)
        axes.set(xlim=(0, 1), ylim=(1e-6, 1.3), yscale="log")
        _key(axes, [*entries, ("line 1 - i/d", GREY, DASHED)])
    return name_curves(figure, axes, [])


@_plain()
def energy_against_density(study: Study) -> Figure:
    """Draw the energy share that Top_k sends at every density, and what each bound promises at least."""
    figure, axes = _canvas("density k / d", "share of energy sent")
    sample = study.samples[-1]
    sketch = sample.vectors[sample.selected]
    if sketch.square_sum == 0:
        return name_curves(figure, axes, [])
    least = max(1 / sketch.numel, 1e-6)
    density = np.geomspace(least, 1, 300)
    curves: list[tuple[str, str, Any, Floats]] = [
        (f"step {sample.step}", METHOD_COLORS[1], "solid", np.array([1 - sketch.tail_share(at) for at in density]))
    ]
    normal = Normal()
    curves.append(("normal law", METHOD_COLORS[4], "solid", np.array([normal.delta(float(at)) for at in density])))
    for (name, bound), dashes in zip(reversed(BOUNDS.items()), METHOD_DASHES, strict=True):
        values = np.array([bound.delta(float(at)) for at in density])
        curves.append((f"bound: {name}", METHOD_COLORS[0], dashes, values))
    for _, color, dashes, values in curves:
        axes.plot(density, values, color=color, linestyle=dashes, linewidth=1.6)
    axes.axvline(asked_density(sample), color="#BBBBBB", linewidth=1, zorder=0)
    axes.set(xlim=(least, 1), yscale="log")
    _log_axis(axes, "x", least, 1, FuncFormatter(lambda value, _: f"{value:g}"))
    _key(axes, [(name, color, dashes) for name, color, dashes, _ in curves])
    return name_curves(figure, axes, [])


def _key(axes: Axes, entries: Sequence[tuple[str, str, Any]]) -> None:
    """Write names beside the axes, from top to bottom in the order of time: the curves end in one place."""
    for number, (text, color, dashes) in enumerate(entries):
        y = 0.95 - 0.085 * number
        axes.plot(
            [1.03, 1.08], [y, y], color=color, linestyle=dashes, linewidth=2, transform=axes.transAxes, clip_on=False
        )
        axes.annotate(text, (1.1, y), xycoords="axes fraction", va="center", color=color, annotation_clip=False)
