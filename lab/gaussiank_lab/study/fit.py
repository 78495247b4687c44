"""How a vector's shape compares with the laws: fits by moments, distances, and the shape tests of the bounds."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from gaussiank_lab.study.sketch import Counts, Floats, Sketch
from gaussiank_lab.theory import LAWS, GeneralisedGaussian, Law, StudentT
from gaussiank_lab.theory.bounds import BOUNDS, is_below_line, is_convex

_FIT_BITS = 3  # the distribution is compared at 8 magnitudes an octave


@dataclass(frozen=True)
class Fit:
    """A law fitted to a vector.

    Attributes:
        name: key in ``theory.LAWS``.
        law: the law, with the vector's root mean square as its deviation.
        distance: Kolmogorov-Smirnov distance, the largest gap between the two distributions, 0 to 1. Read on the edges
            of bins, at which it is exact.
    """

    name: str
    law: Law
    distance: float


def fit_laws(sketch: Sketch) -> list[Fit]:
    """Fit every law of the table to the non-zero entries, nearest first.

    Location is zero, the deviation is the vector's, and a shape (Student-t, generalised Gaussian) comes from the ratio
    of mean ``|u|`` to root mean square; a law that has no such shape is left out. So are exact zeros (dead units),
    because no density has them: their share stands beside the fit.

    Args:
        sketch: the vector.

    Returns:
        The fits; none for a vector of zeros.

    Source: moment matching after Mallat 1989 for the shapes.

    Example:
        >>> import torch
        >>> from gaussiank_lab.study.sampling import sketch_of
        >>> u = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
        >>> fit_laws(sketch_of(u))[0].name in ("normal", "generalised_gaussian")
        True
    """
    count = sketch.numel - sketch.zeros
    if count == 0 or sketch.square_sum == 0:
        return []
    std = float(np.sqrt(sketch.square_sum / count))
    mean_abs = sketch.mean_abs * sketch.numel / count
    laws: dict[str, Law | None] = {name: law(std=std) for name, law in LAWS.items() if law not in _SHAPED}
    laws |= {name: law.matching(mean_abs, std) for name, law in LAWS.items() if law in _SHAPED}
    points, share = distribution(sketch)
    fits = [
        Fit(name, law, float(np.abs(law.cdf(points) - share).max())) for name, law in laws.items() if law is not None
    ]
    return sorted(fits, key=lambda fit: fit.distance)


_SHAPED = (StudentT, GeneralisedGaussian)


def distribution(sketch: Sketch, bits: int = _FIT_BITS) -> tuple[Floats, Floats]:
    """Return points, ascending, and the share of the non-zero entries at or below each.

    Args:
        sketch: the vector.
        bits: points an octave, as a power of two.
    """
    folded = sketch.fold(min(bits, sketch.bits))
    one = 1 << folded.bits
    plus, minus = folded.counts[:, one:-one]
    edges = folded.edges[one:-one]
    filled = np.flatnonzero(plus + minus)
    if not filled.size:
        return np.zeros(0), np.zeros(0)
    inside = slice(int(filled[0]), int(filled[-1]) + 1)
    plus, minus = plus[inside], minus[inside]
    ends = edges[inside.start : inside.stop + 1]
    points = np.concatenate((-ends[::-1], ends))
    below = np.concatenate(([0], np.cumsum(minus[::-1]), [minus.sum()], minus.sum() + np.cumsum(plus)))
    share: Floats = below / below[-1]
    return points, share


def histogram(sketch: Sketch, bits: int = 2) -> tuple[Floats, Floats]:
    """Return the edges of cells, ascending, and the probability density within each, for drawing.

    Zeros and entries below 1/1000 of the root mean square are spread over the cell around zero.

    Args:
        sketch: the vector.
        bits: cells an octave on each side, as a power of two.
    """
    folded = sketch.fold(min(bits, sketch.bits))
    edges, counts = folded.edges, folded.counts[:, : -(1 << folded.bits)]
    filled = np.flatnonzero(counts[:, 1 << folded.bits :].sum(axis=0)) + (1 << folded.bits)
    if not filled.size:
        return np.zeros(0), np.zeros(0)
    floor = 1e-3 * np.sqrt(sketch.square_sum / max(1, sketch.numel))
    first = int(np.clip(np.searchsorted(edges, floor), filled[0], filled[-1]))
    last = int(filled[-1]) + 1
    middle = counts[:, :first].sum()
    ends = np.concatenate((-edges[first : last + 1][::-1], edges[first : last + 1]))
    mass = np.concatenate((counts[1, first:last][::-1], [middle], counts[0, first:last]))
    return ends, mass / np.diff(ends) / max(1, sketch.numel)


@functools.lru_cache(maxsize=256)
def best_fit(sketch: Sketch) -> Fit | None:
    """Return the nearest law, or None for a vector of zeros."""
    fits = fit_laws(sketch)
    return fits[0] if fits else None


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
class FittedShape:
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


def shape_of(sketch: Sketch, density: float) -> FittedShape:
    """Judge a vector.

    A premise that holds proves its bound, also at k, because k ends a block (``theory.Bound``).

    Args:
        sketch: the vector.
        density: share of entries that are sent, in (0, 1].

    Example:
        >>> import torch
        >>> from gaussiank_lab.study.sampling import sketch_of
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
    return FittedShape(
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
