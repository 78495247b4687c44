"""Figures that recipes share: curves with a band over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter

from gaussiank_lab.report.plots import METHOD_COLORS, METHOD_DASHES, End, _canvas, _log_axis, _plain, name_curves
from gaussiank_lab.report.summary import name_lines
from gaussiank_lab.study.sketch import Floats

Curve = tuple[Floats, Sequence[Floats]]
"""x, and y of each seed."""
_MARKERS = "osD"  # a curve of one point shows no dashes


@_plain()
def band_figure(
    curves: Mapping[str, Curve],
    xlabel: str,
    ylabel: str,
    *,
    log_x: str | None = None,
    log_y: bool = False,
    falling_x: bool = False,
) -> Figure:
    """Draw the mean over seeds of each curve, and a band from the lowest to the highest seed.

    Args:
        curves: name -> curve.
        xlabel: with unit.
        ylabel: with unit.
        log_x: unit of a logarithmic x axis (empty for a plain number), or None for a linear one.
        log_y: whether the y axis is logarithmic; what is not above 0 is left out.
        falling_x: whether x falls to the right, so that curves that meet at large x end apart.
    """
    figure, axes = _canvas(xlabel, ylabel)
    ends = []
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for number, (name, (x, seeds)) in enumerate(curves.items()):
        table = np.vstack(seeds)
        if log_y:
            table = np.where(table > 0, table, np.nan)
        known = np.isfinite(table).any(axis=0) & np.isfinite(x) & ((x > 0) if log_x is not None else True)
        if not known.any():
            continue
        place, table = x[known], table[:, known]
        mean = np.nanmean(table, axis=0)
        color = METHOD_COLORS[number % len(METHOD_COLORS)]
        round_of_colors = number // len(METHOD_COLORS)
        dashes = METHOD_DASHES[round_of_colors % len(METHOD_DASHES)]
        axes.fill_between(
            place, np.nanmin(table, axis=0), np.nanmax(table, axis=0), color=color, alpha=0.15, linewidth=0
        )
        marker = _MARKERS[round_of_colors % len(_MARKERS)] if place.size <= 30 else ""
        axes.plot(place, mean, color=color, linestyle=dashes, linewidth=1.8, marker=marker, ms=3 + round_of_colors)
        ends.append(End(name_lines(name), color, float(place[-1]), float(mean[-1])))
    if ends and log_x is not None:
        low, high = axes.dataLim.intervalx
        _log_axis(axes, "x", low, high, EngFormatter(unit=log_x) if log_x else plain)
    if ends and log_y:
        low, high = axes.dataLim.intervaly
        _log_axis(axes, "y", low, high, plain)
    if falling_x:
        axes.invert_xaxis()
    return name_curves(figure, axes, ends)
