"""Is it a bell, is pi^2 convex and under its line, are the bounds kept: the paper's assumptions on a vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gaussiank_lab.study.sketch import Counts, Floats, Sketch
from gaussiank_lab.theory.bounds import BOUNDS, is_below_line, is_convex

BELL_TOLERANCE = 0.01
"""Share of the entries that may lie on the wrong side of a bell: a hump of 1 % is not called one."""

_BLOCK_ENTRIES = 200


@dataclass(frozen=True)
class Verdict:
    """One bound on one vector.

    Attributes:
        premise: whether the condition of the bound holds, on dyadic blocks cut at k.
        limit: largest contraction that the bound allows.
        holds: whether the true contraction of Top_k is within it.
    """

    premise: bool
    limit: float
    holds: bool


@dataclass(frozen=True)
class Shape:
    """The paper's assumptions on one vector.

    Attributes:
        contraction: of Top_k at the density asked for.
        verdicts: bound -> verdict.
        dip: distance of ``|u|`` from a bell, as a share of the entries (``bell_dip``).
        bell: whether both signs are bells with the mode at zero, to ``BELL_TOLERANCE``.
        below_line: whether ``pi^2`` lies under ``1 - i/d``.
        convex: whether ``pi^2`` is convex and reaches zero.
    """

    contraction: float
    verdicts: dict[str, Verdict]
    dip: float
    bell: bool
    below_line: bool
    convex: bool


def shape_of(sketch: Sketch, density: float) -> Shape:
    """Judge a vector.

    A premise that holds proves its bound, also at k, because k ends a block (``theory.Bound``).

    Args:
        sketch: the vector.
        density: share of entries that are sent, in (0, 1].

    Example:
        >>> import torch
        >>> from gaussiank_lab.study.measure import sketch_of
        >>> shape = shape_of(sketch_of(torch.rand(100_000) - 0.5), density=0.01)
        >>> shape.bell, shape.verdicts["squared"].holds
        (True, True)
    """
    shares, energies = premise_blocks(sketch, density)
    contraction = sketch.tail_share(density)
    verdicts = {
        name: Verdict(
            premise=bound.premise(shares, energies) if shares.size else True,
            limit=bound.contraction(density),
            holds=bool(bound.holds(density, contraction)),
        )
        for name, bound in BOUNDS.items()
    }
    tolerance = max(BELL_TOLERANCE, 1.36 / np.sqrt(max(1, sketch.numel)))  # 5 % of bells have a larger dip by chance
    sides = [bell_dip(side, sketch) for side in sketch.counts]
    return Shape(
        contraction=contraction,
        verdicts=verdicts,
        dip=bell_dip(sketch.counts.sum(axis=0), sketch),
        bell=max(sides) <= tolerance,
        below_line=is_below_line(shares, energies, sketch.peak**2) if shares.size else True,
        convex=is_convex(shares, energies) if shares.size else True,
    )


def premise_blocks(sketch: Sketch, density: float) -> tuple[Floats, Floats]:
    """Return the blocks that premises are checked on, from large to small: shares of entries, and energies over numel.

    One boundary lies exactly at ``density``, the others at 1/2, 1/4, 1/8, ... of the entries, down to a block of 200.
    So coarse a grid is needed: between finer blocks, sampling noise breaks the order that a normal law has.
    """
    if sketch.square_sum == 0:
        return np.zeros(0), np.zeros(0)
    halvings = int(np.log2(max(2.0, sketch.numel / _BLOCK_ENTRIES)))
    halves = [end for end in 0.5 ** np.arange(1, halvings + 1) if not 2 / 3 < end / density < 3 / 2]
    ends = np.unique([*halves, density, 1.0])
    left = np.array([sketch.tail_share(end) for end in ends[:-1]] + [0.0])
    energy = -np.diff(np.concatenate(([1.0], left))) * sketch.square_sum / sketch.numel
    return np.diff(np.concatenate(([0.0], ends))), np.maximum(energy, 0.0)


def bell_dip(counts: Counts, sketch: Sketch) -> float:
    """Return how far magnitudes are from having a density that never increases: 0 for a bell.

    A density falls when its distribution function is concave. The concave function nearest to it, by the largest gap,
    is its least concave majorant (Grenander's estimate) lowered by half of their largest gap, which is the distance.

    Args:
        counts: ``[bins]``, entries of one sign or both by magnitude.
        sketch: where they come from.
    """
    one = 1 << sketch.bits
    inside = counts[:-one]
    total = inside.sum()
    if total == 0:
        return 0.0
    share = np.cumsum(inside) / total
    edges = sketch.edges[1 : share.size + 1]
    points = np.flatnonzero(np.append(inside, 0)[: share.size] > 0)
    x = np.concatenate(([0.0], edges[points]))
    y = np.concatenate(([0.0], share[points]))
    if x[1] == 0:  # zeros: a jump at the start, as a bell may have
        x, y = x[1:], y[1:]
    hull = _concave_majorant(x, y)
    return float(np.max(np.interp(x, x[hull], y[hull]) - y)) / 2


def _concave_majorant(x: Floats, y: Floats) -> list[int]:
    """Return the corners of the least concave function above the points."""
    hull: list[int] = []
    for i in range(x.size):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[i] - x[a]) <= (y[i] - y[a]) * (x[b] - x[a]):
                hull.pop()
            else:
                break
        hull.append(i)
    return hull


def pi_squared(sketch: Sketch, points: int = 400) -> tuple[Floats, Floats]:
    """Return places i/d and ``pi^2`` at each, for drawing: the i-th largest ``u^2`` over the largest.

    Args:
        sketch: the vector.
        points: how many places, spread evenly, plus a few near 0 where it falls fastest.
    """
    places = np.unique(np.concatenate((np.linspace(0, 1, points), np.geomspace(1e-5, 0.02, 40))))
    peak = sketch.peak or 1.0
    heights = np.array([min(1.0, (sketch.threshold(place) / peak) ** 2) if place > 0 else 1.0 for place in places])
    return places, heights
