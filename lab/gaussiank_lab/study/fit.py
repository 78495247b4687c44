"""Which law a sketch looks like: each one fitted by its moments, and how far its distribution lies from the data's."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from gaussiank_lab.study.sketch import Floats, Sketch
from gaussiank_lab.theory import LAWS, GeneralisedGaussian, Law, StudentT

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
        >>> from gaussiank_lab.study.measure import sketch_of
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
