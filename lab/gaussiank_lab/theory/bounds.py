"""How much energy Top_k can leave behind at most: three bounds, and the condition that makes each true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

TOLERANCE = 1e-9
"""Relative rounding that is forgiven where a bound or a condition is checked on float64 sums."""


@dataclass(frozen=True)
class Bound:
    """Bound ``gamma = ||u - Top_k(u)||^2 / ||u||^2`` by ``(1 - k/d)^power``.

    Write w = 1 - i/d for the place of an entry, counted from the smallest, and a(w) for its energy. Then gamma is the
    share of a below w = 1 - k/d, and a(w) is non-decreasing.

    - power 1, ``1 - k/d``: true for every vector.
    - power 2: true when ``a(w) / w`` is non-decreasing. The paper asks that ``pi^2`` (a over its maximum) be convex and
      under the line ``1 - i/d``; convex *and zero at the smallest entry* is what it needs, and is enough, because a
      convex function through the origin has a non-decreasing ``a(w) / w``. Without the zero it is false:
      u^2 = (4, 3, 2, 1), k = 2 leaves 0.30 and the bound says 0.25.
    - power 3: true when ``a(w) / w^2`` is non-decreasing. A bell is enough, that is a density of ``|u|`` that does not
      increase: the quantile function of ``|u|`` is then convex and starts at zero, so ``sqrt(a(w)) / w`` does not
      decrease. The uniform law meets it exactly.

    Why: let a = w^(p-1) h with h non-decreasing. The mean of h under the weight w^(p-1) over [0, w] is at most its mean
    over [0, 1]; multiplied by the weights, ``integral_0^w a <= w^p integral_0^1 a``.

    ``premise`` checks exactly this on blocks of a real vector, so that a premise that holds proves the bound at every
    end of a block, without a tolerance for d.

    Args:
        name: its key in ``BOUNDS``.
        power: 1, 2 or 3.

    Source: Stich et al. 2018, "Sparsified SGD with Memory", the k-contraction property (power 1); Shi et al. 2019, the
    tighter bound of Top_k (power 2); power 3 was derived for this project.
    Differs: the paper leaves out that ``pi^2`` must reach zero.

    Example:
        >>> SQUARED.contraction(0.001), round(SQUARED.delta(0.001), 9)
        (0.998001, 0.001999)
        >>> u = np.sqrt([4.0, 3.0, 2.0, 1.0])
        >>> bool(SQUARED.premise(*energy_blocks(u))), round(float(tail_share(u, 2)), 3)
        (False, 0.3)
    """

    name: str
    power: int

    def contraction(self, density: float) -> float:
        """Return the largest gamma that the bound allows, ``(1 - density)^power``; density = k/d in [0, 1]."""
        return float((1 - density) ** self.power)

    def delta(self, density: float) -> float:
        """Return the energy share that is sent at least, ``1 - (1 - density)^power``.

        ``k/d``, ``(2kd - k^2) / d^2`` and ``1 - (1 - k/d)^3``; multiplied out, so that small densities keep their
        digits.
        """
        return density if self.power == 1 else density * sum((1 - density) ** n for n in range(self.power))

    def holds(self, density: ArrayLike, contraction: ArrayLike) -> NDArray[np.bool_]:
        """Tell for each pair of density and true gamma whether the bound is kept."""
        limit = (1 - np.asarray(density, dtype=np.float64)) ** self.power
        kept: NDArray[np.bool_] = np.asarray(contraction) <= limit + TOLERANCE
        return kept

    def premise(self, shares: ArrayLike, energies: ArrayLike) -> bool:
        """Tell whether the condition of the bound holds on blocks of a vector sorted from large to small.

        Args:
            shares: ``[blocks]``, entries of each block over d; they sum to 1.
            energies: ``[blocks]``, sum of squares of each block, in any unit.

        Returns:
            Whether ``energy / (w_start^power - w_end^power)`` never increases from one block to the next.
        """
        share, energy = np.asarray(shares, dtype=np.float64), np.asarray(energies, dtype=np.float64)
        left = np.clip(1 - np.concatenate(([0.0], np.cumsum(share))), 0.0, 1.0)
        left[-1] = 0.0
        weight = left[:-1] ** self.power - left[1:] ** self.power
        ratio = energy[weight > 0] / weight[weight > 0]
        return bool(np.all(ratio[1:] <= ratio[:-1] * (1 + TOLERANCE) + TOLERANCE * energy.sum()))


LINEAR, SQUARED, CUBED = Bound("linear", 1), Bound("squared", 2), Bound("cubed", 3)

BOUNDS: dict[str, Bound] = {bound.name: bound for bound in (LINEAR, SQUARED, CUBED)}
"""Name -> bound."""


def tail_share(vector: ArrayLike, k: int) -> float:
    """Return the true gamma, ``||u - Top_k(u)||^2 / ||u||^2``; 0 for a vector of zeros.

    Args:
        vector: ``[numel]``, finite. Not modified.
        k: entries that are sent, 0 to numel.

    Raises:
        ValueError: ``vector`` is not flat and finite, or ``k`` is out of range.

    Example:
        >>> round(tail_share([3.0, -1.0, 2.0, 0.5], k=2) * 14.25, 12)
        1.25
    """
    squares = _squares(vector)
    if not 0 <= k <= squares.size:
        raise ValueError(f"k must be in [0, numel = {squares.size}], got {k}. Ask for at most all entries.")
    total = float(squares.sum())
    return float(squares[k:].sum()) / total if total > 0 else 0.0


def energy_blocks(vector: ArrayLike, blocks: int | None = None) -> tuple[Floats, Floats]:
    """Cut a vector, sorted from large to small, into blocks, for ``Bound.premise``.

    Args:
        vector: ``[numel]``, finite. Not modified.
        blocks: how many, of as equal a size as can be; None makes one of each entry.

    Returns:
        ``[blocks]`` shares of entries, and ``[blocks]`` energies: sums of squares over numel, so that they sum to the
        mean square, and energy over share is the mean square within a block.

    Raises:
        ValueError: ``vector`` is not flat, finite and non-empty.
    """
    squares = _squares(vector)
    count = squares.size if blocks is None else min(blocks, squares.size)
    ends = np.linspace(0, squares.size, count + 1).round().astype(int)
    return np.diff(ends) / squares.size, np.add.reduceat(squares, ends[:-1]) / squares.size


def is_convex(shares: ArrayLike, energies: ArrayLike) -> bool:
    """Tell whether ``pi^2`` is convex over the blocks and, carried on, reaches zero with the last entry.

    The condition of the paper as it must read. It implies ``SQUARED.premise``.

    Args:
        shares: ``[blocks]``, entries of each block over d, from large entries to small.
        energies: ``[blocks]``, sum of squares of each block.
    """
    share, energy = np.asarray(shares, dtype=np.float64), np.asarray(energies, dtype=np.float64)
    share, energy = share[share > 0], energy[share > 0]
    place = np.cumsum(share) - share / 2
    height = np.append(energy / share, 0.0)
    slope = np.diff(height) / np.diff(np.append(place, 1.0))
    return bool(np.all(np.diff(slope) >= -TOLERANCE * np.abs(slope[:-1])))


def is_below_line(shares: ArrayLike, energies: ArrayLike, peak: float) -> bool:
    """Tell whether ``pi^2`` lies on or under the line ``1 - i/d`` over the blocks: the paper's figure of it.

    Args:
        shares: ``[blocks]``, entries of each block over d, from large entries to small.
        energies: ``[blocks]``, sum of squares of each block over numel.
        peak: largest ``u^2``.
    """
    share, energy = np.asarray(shares, dtype=np.float64), np.asarray(energies, dtype=np.float64)
    share, energy = share[share > 0], energy[share > 0]
    middle = 1 - (np.cumsum(share) - share / 2)
    middle[:1] = 1.0  # pi^2 starts at 1, on the line
    return bool(np.all(energy / share <= peak * middle * (1 + TOLERANCE)))


def _squares(vector: ArrayLike) -> Floats:
    """Return the squares from large to small."""
    values = np.asarray(vector, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"vector must be flat, finite and not empty, got shape {values.shape}. Leave out infinities and NaN."
        )
    squares: Floats = np.sort(values**2)[::-1]
    return squares
