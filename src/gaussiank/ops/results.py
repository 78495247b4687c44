"""What the ops return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Moments(NamedTuple):
    """Moments of a vector, each a 0-d tensor on its device.

    Attributes:
        mean: mean of u.
        std: standard deviation of u, unbiased (divisor ``numel - 1``).
        mean_abs: mean of |u|.
        max_abs: largest |u|; NaN when there is one in u.
        finite: bool, whether no entry is infinite or NaN.
    """

    mean: Tensor
    std: Tensor
    mean_abs: Tensor
    max_abs: Tensor
    finite: Tensor


class Taken(NamedTuple):
    """Exactly k entries of a vector.

    Attributes:
        indices: int32 ``[k]``, ascending.
        values: ``[k]``, the entries there.
        hint: 0-d tensor, the k-th magnitude (infinite when that entry is not finite); pass it to the next step's call.
    """

    indices: Tensor
    values: Tensor
    hint: Tensor


class TakenAbove(NamedTuple):
    """The entries of a vector above a threshold, as many as fit.

    Attributes:
        indices: int32 ``[kept]``, ascending.
        values: ``[kept]``, the entries there.
        above: entries above the threshold; larger than ``kept`` when the capacity was too small for all.
        moments: of the accumulated vector, before anything was taken from it.
    """

    indices: Tensor
    values: Tensor
    above: int
    moments: Moments


class Magnitudes(NamedTuple):
    """Entries and their squares by sign and magnitude, on the CPU.

    Attributes:
        counts: int64 ``[2, 256 << bits]``, of the whole vector.
        energy: float64 ``[256 << bits]``, sums of squares; what is infinite, NaN or below 2^-126 has none.
        part_counts: int64 ``[parts, 2, 256 << part_bits]``.
        part_energy: float64 ``[parts, 256 << part_bits]``.
    """

    counts: Tensor
    energy: Tensor
    part_counts: Tensor
    part_energy: Tensor
