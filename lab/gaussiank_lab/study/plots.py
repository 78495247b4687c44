"""The figures of a study: over the entries, over the layers and over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from gaussiank_lab.report.plots import METHOD_COLORS, METHOD_DASHES, End, _canvas, _log_axis, _plain, name_curves
from gaussiank_lab.study.fit import distribution, fit_laws, histogram, pi_squared
from gaussiank_lab.study.sketch import Floats
from gaussiank_lab.study.study import VECTORS, Study, StudySample
from gaussiank_lab.study.summary import asked_density, law_name, whole_vectors
from gaussiank_lab.theory import BOUNDS, LAWS, NoiseResidual, Normal

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


_VECTOR_COLORS = {"grad": "#009E73", "residual": "#D55E00", "accumulated": "#0072B2"}


@_plain()
def energy_over_steps(study: Study) -> Figure:
    """Draw the energy share sent by what ran and by each operator tried, and each bound's promise for Top_k."""
    figure, axes = _canvas("step", "share of energy sent")
    ends = []
    rows = {"in this run": {s.step: 1 - s.value("contraction") for s in study.samples if "contraction" in s.record}}
    if not rows["in this run"]:
        rows = {"Top_k": {s.step: 1 - v.tail_share(asked_density(s)) for s, v in whole_vectors(study)}}
    for sample in study.samples:
        for name, tried in sample.record.get("operators", {}).items():
            rows.setdefault(name, {})[sample.step] = 1 - tried["contraction"]
    for number, (name, points) in enumerate(rows.items()):
        ends += _line(axes, name, _positive(points), number)
    for bound in BOUNDS.values():
        promised = {sample.step: bound.delta(asked_density(sample)) for sample in study.samples}
        axes.plot(*_arrays(promised), color=GREY, linestyle=DASHED, linewidth=1.1)
        ends.append(End(f"{bound.name} bound", GREY, *[float(part[-1]) for part in _arrays(promised)]))
    values = np.array([value for points in rows.values() for value in points.values() if value > 0])
    if values.size:
        low = min(values.min(), *(bound.delta(asked_density(study.samples[-1])) for bound in BOUNDS.values()))
        _log_axis(axes, "y", low, values.max(), FuncFormatter(lambda value, _: f"{value:g}"))
    return name_curves(figure, axes, ends)


@_plain()
def kept_over_steps(study: Study) -> Figure:
    """Draw kept/k of every step of the run, and at samples what other operators would have kept (log scale)."""
    figure, axes = _canvas("step", "kept / k")
    ends = []
    step = np.array([at for sample in study.samples for at in sample.record.get("since", {}).get("step", [])])
    if not step.size:
        return name_curves(figure, axes, [])
    kept, k = (
        np.array([at for sample in study.samples for at in sample.record["since"][key]], dtype=float)
        for key in ("kept", "k")
    )
    rows = {"in this run": dict(zip(step.tolist(), (kept / k).tolist(), strict=True))}
    for sample in study.samples:
        for name, tried in sample.record.get("operators", {}).items():
            rows.setdefault(name, {})[sample.step] = tried["kept"] / max(1.0, sample.value("k"))
    for number, (name, points) in enumerate(rows.items()):
        ends += _line(axes, name, _positive(points), number)
    axes.axhspan(2 / 3, 4 / 3, color="#EFEFEF", zorder=0)
    shown = np.array([value for points in rows.values() for value in points.values() if value > 0])
    low, high = min(0.5, 0.8 * shown.min(initial=1)), max(2.0, 1.25 * shown.max(initial=1))
    _log_axis(axes, "y", low, high, FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(low, high)
    return name_curves(figure, axes, ends)


@_plain()
def residual_size(study: Study) -> Figure:
    """Draw the norm of the residual over that of the gradient, and what pure noise would come to."""
    figure, axes = _canvas("step", "norm of e / norm of g")
    ratio = {}
    for sample in study.samples:
        if "residual" in sample.vectors and sample.vectors["grad"].square_sum > 0:
            ratio[sample.step] = np.sqrt(sample.vectors["residual"].square_sum / sample.vectors["grad"].square_sum)
    if not any(ratio.values()):
        return name_curves(figure, axes, [])
    ends = _line(axes, "in this run", ratio, 1)
    noise = {s.step: NoiseResidual(asked_density(s)).energy_over_noise ** 0.5 for s in study.samples}
    axes.plot(*_arrays(noise), color=GREY, linestyle=DASHED, linewidth=1.2)
    ends.append(End("noise alone,\nin the long run", GREY, *[float(part[-1]) for part in _arrays(noise)]))
    return name_curves(figure, axes, ends)


@_plain()
def residual_age(study: Study) -> Figure:
    """Draw how many steps ago entries were last sent, and what pure noise would come to."""
    figure, axes = _canvas("step", "steps since last sent")
    ends = []
    for number, (key, label) in enumerate((("mean", "mean"), ("median", "median"), ("p90", "90th percentile"))):
        points = {s.step: float(s.record["age"][key]) for s in study.samples if "age" in s.record}
        ends += _line(axes, label, points, number)
    if ends:
        noise = {s.step: min(s.step + 1.0, NoiseResidual(asked_density(s)).mean_age) for s in study.samples}
        axes.plot(*_arrays(noise), color=GREY, linestyle=DASHED, linewidth=1.2)
        ends.append(End("mean for noise", GREY, *[float(part[-1]) for part in _arrays(noise)]))
    return name_curves(figure, axes, ends)


@_plain()
def kurtosis_over_steps(study: Study) -> Figure:
    """Draw the kurtosis of g, e and u (log scale), and that of laws."""
    figure, axes = _canvas("step", "kurtosis")
    ends = []
    for vector in VECTORS:
        points = {s.step: s.vectors[vector].kurtosis for s in study.samples if vector in s.vectors}
        points = {step: value for step, value in points.items() if value > 0}
        if points:
            axes.plot(*_arrays(points), color=_VECTOR_COLORS[vector], linewidth=1.8, marker="o", ms=3)
            ends.append(End(NAMES[vector], _VECTOR_COLORS[vector], *[float(part[-1]) for part in _arrays(points)]))
    if not ends:
        return name_curves(figure, axes, [])
    high = max(float(np.asarray(line.get_ydata()).max()) for line in axes.lines)
    for law in ("triangular", "normal", "laplace"):
        value = LAWS[law]().kurtosis
        axes.axhline(value, color=GREY, linestyle=DASHED, linewidth=1.1)
        ends.append(End(law_name(law), GREY, float(study.samples[-1].step), value))
    _log_axis(axes, "y", 2, high, FuncFormatter(lambda value, _: f"{value:g}"))
    return name_curves(figure, axes, ends)


@_plain()
def fits_over_steps(study: Study) -> Figure:
    """Draw how far each fitted law lies from what is selected from: Kolmogorov-Smirnov distance, 0 is a perfect fit."""
    figure, axes = _canvas("step", "distance of the fitted law")
    rows: dict[str, dict[int, float]] = {}
    for sample, sketch in whole_vectors(study):
        for fit in fit_laws(sketch):
            rows.setdefault(fit.name, {})[sample.step] = fit.distance
    ends = []
    for number, name in enumerate(law for law in LAWS if law in rows):
        ends += _line(axes, law_name(name), rows[name], number)
    if ends:
        axes.set_ylim(0, None)
    return name_curves(figure, axes, ends)


@_plain()
def cosine_over_steps(study: Study) -> Figure:
    """Draw the cosine between the mean of what was sent and the mean of the dense gradients."""
    figure, axes = _canvas("step", "cosine with the dense mean")
    ends = _line(axes, "", {s.step: s.value("cosine") for s in study.samples if "cosine" in s.record}, 1)
    if ends:
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
    return name_curves(figure, axes, [])


@_plain()
def zeros_over_steps(study: Study) -> Figure:
    """Draw the share of entries that are exactly zero, in percent."""
    figure, axes = _canvas("step", "entries that are zero")
    ends = []
    for vector in VECTORS:
        points = {
            s.step: s.vectors[vector].zeros / max(1, s.vectors[vector].numel)
            for s in study.samples
            if vector in s.vectors
        }
        if points:
            axes.plot(*_arrays(points), color=_VECTOR_COLORS[vector], linewidth=1.8, marker="o", ms=3)
            ends.append(End(NAMES[vector], _VECTOR_COLORS[vector], *[float(part[-1]) for part in _arrays(points)]))
    if ends:
        axes.set_ylim(0, max(0.01, axes.get_ylim()[1]))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return name_curves(figure, axes, ends)


def _line(axes: Axes, name: str, points: dict[int, float], number: int) -> list[End]:
    x, y = _arrays(points)
    known = np.isfinite(y)
    if not known.any():
        return []
    color = METHOD_COLORS[number % len(METHOD_COLORS)]
    dashes = METHOD_DASHES[number // len(METHOD_COLORS) % len(METHOD_DASHES)]
    marker = "o" if known.sum() <= 30 else ""
    axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.6, marker=marker, ms=3)
    return [End(name.replace(":", ":\n"), color, float(x[known][-1]), float(y[known][-1]))]


def _positive(points: dict[int, float]) -> dict[int, float]:
    """Replace what a log axis cannot show by a gap."""
    return {step: value if value > 0 else np.nan for step, value in points.items()}


def _arrays(points: dict[int, float]) -> tuple[Floats, Floats]:
    return np.array(list(points), dtype=np.float64), np.array(list(points.values()), dtype=np.float64)


FIGURES: tuple[tuple[str, Callable[[Study], Figure], str, str], ...] = (
    (
        "distribution-u",
        lambda study: distributions(study, study.samples[-1].selected),
        "What is selected from",
        "Density of every entry, in units of its root mean square, from light (early) to dark (late). A bell falls on "
        "both sides of zero; where it lies above the dashed normal law far out, its tails are heavier.",
    ),
    (
        "distribution-g",
        lambda study: distributions(study, "grad"),
        "Gradients",
        "The same for the gradient of one step on one worker.",
    ),
    (
        "distribution-e",
        lambda study: distributions(study, "residual"),
        "Residuals",
        "The same for what earlier steps did not send. Its sides end where the threshold of the selection lies.",
    ),
    ("cumulative", cumulative, "Cumulative distribution", "Share of the entries below a value."),
    (
        "pi-squared",
        pi_against_line,
        "Ordered squares against the line",
        "The paper's premise: the curve is convex, reaches zero and lies under the line. The axis is logarithmic.",
    ),
    (
        "bounds-density",
        energy_against_density,
        "Bounds against truth, over densities",
        "Energy share that exact Top_k sends of the last sample. A bound promises at least its line; the upright line "
        "is the density in use.",
    ),
    (
        "bounds-steps",
        energy_over_steps,
        "Bounds against truth, over steps",
        "One minus the contraction. Operators that keep more than k entries lie higher, those that keep fewer lower.",
    ),
    (
        "kept",
        kept_over_steps,
        "Entries kept",
        "1 is exact; the band from 2/3 to 4/3 is what Gaussian_k aims at. Steps that kept nothing have no point.",
    ),
    (
        "fits",
        fits_over_steps,
        "Fitted laws",
        "Largest gap between the distribution of the non-zero entries and the law with their moments.",
    ),
    ("kurtosis", kurtosis_over_steps, "Kurtosis", "Fourth moment over the squared second; dashed lines are laws."),
    ("residual-size", residual_size, "Size of the residual", "What waits, in gradients."),
    ("residual-age", residual_age, "Age of the residual", "Followed on up to 4096 entries."),
    ("cosine", cosine_over_steps, "Direction", "1 would be the direction of the dense mean gradient."),
    ("zeros", zeros_over_steps, "Zeros", "Entries that are exactly zero: dead units, or just sent."),
)
"""File name, how it is drawn, heading, caption."""
