"""Logarithmic histograms with exact energies, and the table of a model's layers."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

MANTISSA_BITS = 4
"""16 bins an octave, each 3 to 6 % wide."""
LAYER_BITS = 1
"""2 bins an octave: what is kept of a single layer."""
OCTAVES = 24
"""A record reaches this many octaves below the largest entry; what lies deeper is counted, its energy dropped."""

_EXPONENTS = 256


@dataclass(frozen=True, eq=False)
class Sketch:
    """Count the entries of a vector by sign and magnitude, with their energy.

    Args:
        counts: int64 ``[2, 256 << bits]``, entries with sign plus and minus by leading bits of their magnitude.
        energy: float64 ``[256 << bits]``, sum of squares of the entries in each bin of magnitude.

    What it derives: numbers of entries and energies are exact, and so is the contraction of a threshold that ends a
    bin. Within a bin entries are taken to lie evenly: at 4 bits thresholds are good to about 0.2 %, mean, mean_abs and
    kurtosis to about 0.2 % of their scale. Magnitudes below 2^-126 count as zero.

    Example:
        >>> import torch
        >>> from gaussiank_lab.study.sampling import sketch_of
        >>> sketch = sketch_of(torch.tensor([3.0, -1.0, 2.0, 0.0]))
        >>> sketch.numel, sketch.zeros, sketch.square_sum, round(sketch.tail_share(0.25) * 14)
        (4, 1, 14.0, 5)
    """

    counts: Counts
    energy: Floats

    def __post_init__(self) -> None:
        bins = self.energy.size
        if self.counts.shape != (2, bins) or bins < _EXPONENTS or bins & (bins - 1):
            raise ValueError(
                f"counts must have shape (2, bins) with bins a power of two from {_EXPONENTS}, got "
                f"{self.counts.shape} for {bins} energies. Take them from sketch_of."
            )

    # ------------------------------------------------------------------ counting

    @property
    def bits(self) -> int:
        """Bits of the mantissa that tell bins apart."""
        return (self.energy.size // _EXPONENTS).bit_length() - 1

    @property
    def numel(self) -> int:
        """Entries, without infinities and NaN."""
        return int(self._magnitudes.sum())

    @property
    def nonfinite(self) -> int:
        """Infinities and NaN; nothing else knows of them."""
        return int(self.counts[:, -(1 << self.bits) :].sum())

    @property
    def zeros(self) -> int:
        """Entries that are zero, or below 2^-126."""
        return int(self.counts[:, : 1 << self.bits].sum())

    @property
    def edges(self) -> Floats:
        """``[bins + 1]`` magnitudes at which bins begin and end, the last one infinite."""
        return _edges(self.bits)

    @property
    def _magnitudes(self) -> Counts:
        both: Counts = self.counts.sum(axis=0)
        both[-(1 << self.bits) :] = 0
        return both

    # ------------------------------------------------------------------ moments

    @property
    def square_sum(self) -> float:
        """``||u||^2``."""
        return float(self.energy.sum())

    @property
    def mean(self) -> float:
        """Mean of u."""
        return float((self.counts[0] - self.counts[1]) @ self._rms) / max(1, self.numel)

    @property
    def std(self) -> float:
        """Standard deviation of u."""
        return float(np.sqrt(max(0.0, self.square_sum / max(1, self.numel) - self.mean**2)))

    @property
    def mean_abs(self) -> float:
        """Mean of ``|u|``."""
        return float(self._magnitudes @ self._rms) / max(1, self.numel)

    @property
    def kurtosis(self) -> float:
        """``E u^4 / (E u^2)^2``, 3 for a normal law; 0 for a vector of zeros."""
        if self.square_sum == 0:
            return 0.0
        return float(self.energy @ self._rms**2) * self.numel / self.square_sum**2

    @property
    def peak(self) -> float:
        """Largest ``|u|``: exact when alone in its bin, else where the largest of as many draws lies on average."""
        counts = self._magnitudes
        filled = np.flatnonzero(counts)
        if not filled.size or self.square_sum == 0:
            return 0.0
        last = int(filled[-1])
        if counts[last] == 1:
            return float(self._rms[last])
        low, high = self.edges[last], self.edges[last + 1]
        return float(low + (high - low) * counts[last] / (counts[last] + 1))

    @property
    def _rms(self) -> Floats:
        """Root mean square of each bin; 0 where it is empty."""
        counts = self._magnitudes
        mean: Floats = np.sqrt(np.divide(self.energy, counts, out=np.zeros_like(self.energy), where=counts > 0))
        return mean

    # ------------------------------------------------------------------ thresholds and contractions

    def curve(self) -> tuple[Floats, Floats]:
        """Return densities at the ends of filled bins, ascending, and the exact contraction of Top_k at each."""
        counts, energy = self._magnitudes[::-1], self.energy[::-1]
        filled = counts > 0
        density = np.cumsum(counts[filled]) / max(1, self.numel)
        return density, np.clip(1 - np.cumsum(energy[filled]) / (self.square_sum or 1.0), 0.0, 1.0)

    def threshold(self, density: float) -> float:
        """Return the magnitude that the share ``density`` of the entries exceeds."""
        bin_, share = self._place(density)
        edges = self.edges
        return float(edges[bin_ + 1] - share * (edges[bin_ + 1] - edges[bin_]))

    def density(self, threshold: float) -> float:
        """Return the share of the entries whose magnitude is above ``threshold``."""
        counts, edges = self._magnitudes, self.edges
        bin_ = int(np.clip(np.searchsorted(edges, threshold, side="right") - 1, 0, counts.size - 1))
        inside = (edges[bin_ + 1] - threshold) / (edges[bin_ + 1] - edges[bin_]) if counts[bin_] else 0.0
        return float(counts[bin_ + 1 :].sum() + counts[bin_] * inside) / max(1, self.numel)

    def tail_share(self, density: float) -> float:
        """Return the contraction of Top_k at ``k = density * numel``: ``||u - Top_k(u)||^2 / ||u||^2``."""
        if self.square_sum == 0:
            return 0.0
        bin_, share = self._place(density)
        low, high = self.edges[bin_], self.edges[bin_ + 1]
        if high == 0:  # among the zeros
            return 0.0
        cut = high - share * (high - low)
        inside = (high**3 - cut**3) / (high**3 - low**3)
        above = self.energy[bin_ + 1 :].sum() + self.energy[bin_] * inside
        return float(np.clip(1 - above / self.square_sum, 0.0, 1.0))

    def _place(self, density: float) -> tuple[int, float]:
        """Find the bin that holds the entry of rank ``density * numel``, and the share of the bin above it."""
        counts = self._magnitudes
        wanted = density * self.numel
        above = np.cumsum(counts[::-1])[::-1]  # entries in a bin or above it
        bin_ = int(np.searchsorted(-above, -wanted, side="right") - 1)
        bin_ = max(0, min(bin_, counts.size - 2))
        rest = wanted - (above[bin_ + 1] if bin_ + 1 < counts.size else 0)
        return bin_, float(min(1.0, max(0.0, rest / counts[bin_]))) if counts[bin_] else 1.0

    # ------------------------------------------------------------------ merging, and records

    def __add__(self, other: Sketch) -> Sketch:
        """Return the sketch of both vectors end to end; the coarser of two resolutions counts."""
        bits = min(self.bits, other.bits)
        one, two = self.fold(bits), other.fold(bits)
        return Sketch(one.counts + two.counts, one.energy + two.energy)

    def fold(self, bits: int) -> Sketch:
        """Return the same vector in bins of ``bits`` bits, at most as many as now."""
        if not 0 <= bits <= self.bits:
            raise ValueError(f"bits must be in [0, {self.bits}], got {bits}. A sketch can only become coarser.")
        bins = _EXPONENTS << bits
        return Sketch(self.counts.reshape(2, bins, -1).sum(axis=2), self.energy.reshape(bins, -1).sum(axis=1))

    def as_record(self) -> dict[str, Any]:
        """Return JSON values: the filled range of bins, down to ``OCTAVES`` below the largest entry.

        Counts (uint32) and energies (float32) are packed, little-endian in base64: as lists of numbers they took
        twice the time and twice the room.
        """
        one = 1 << self.bits
        counts = self.counts.sum(axis=0)
        filled = np.flatnonzero(counts[one:-one])
        last = int(filled[-1]) + one + 1 if filled.size else 0
        first = max(int(filled[0]) + one, last - (OCTAVES << self.bits)) if filled.size else 0
        square_sum = self.square_sum
        return {
            "bits": self.bits,
            "first": first,
            "plus": pack(self.counts[0, first:last], "<u4"),
            "minus": pack(self.counts[1, first:last], "<u4"),
            "energy": pack(self.energy[first:last] / (square_sum or 1.0), "<f4"),
            "square_sum": square_sum,
            "zeros": int(counts[:one].sum()),
            "tiny": int(counts[one:first].sum()),
            "nonfinite": int(counts[-one:].sum()),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Sketch:
        """Read what ``as_record`` made; what was too small to be listed counts as zero.

        Raises:
            ValueError: the record is damaged.
        """
        try:
            plus, minus = (unpack(record[key], "<u4") for key in ("plus", "minus"))
            numbers = {key: record[key] for key in ("square_sum", "zeros", "tiny", "nonfinite")}
            energy = unpack(record["energy"], "<f4")
            return cls.restore(
                int(record["bits"]), int(record["first"]), plus=plus, minus=minus, energy=energy, **numbers
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"sketch must be what a recorder wrote, got {error!r}. Record the run again.") from None

    @classmethod
    def restore(
        cls,
        bits: int,
        first: int,
        *,
        plus: NDArray[np.uint32],
        minus: NDArray[np.uint32],
        energy: NDArray[np.float32],
        square_sum: float,
        zeros: int,
        tiny: int,
        nonfinite: int,
    ) -> Sketch:
        """Make a sketch of what a record lists: bins from ``first`` on, and counts of what has none there."""
        bins = _EXPONENTS << bits
        counts, energies = np.zeros((2, bins), dtype=np.int64), np.zeros(bins)
        counts[:, first : first + plus.size] = plus, minus
        share = energy.astype(np.float64)
        energies[first : first + share.size] = share * (float(square_sum) / (share.sum() or 1.0))
        counts[0, 0] += int(zeros) + int(tiny)
        counts[0, -1] += int(nonfinite)
        return cls(counts, energies)

    @classmethod
    def empty(cls, bits: int = MANTISSA_BITS) -> Sketch:
        """Return the sketch of no entries, to add others to."""
        return cls(np.zeros((2, _EXPONENTS << bits), dtype=np.int64), np.zeros(_EXPONENTS << bits))

    @classmethod
    def sum(cls, sketches: Iterable[Sketch]) -> Sketch | None:
        """Merge many; None when there are none."""
        total: Sketch | None = None
        for sketch in sketches:
            total = sketch if total is None else total + sketch
        return total


def pack(values: NDArray[Any], dtype: str) -> str:
    """Write numbers, little-endian in base64."""
    return base64.b64encode(values.astype(dtype).tobytes()).decode("ascii")


def unpack(text: str, dtype: str) -> NDArray[Any]:
    """Read what ``pack`` wrote."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=dtype)


@cache
def _edges(bits: int) -> Floats:
    finite = (_EXPONENTS - 1) << bits  # bins of numbers; those above hold infinities and NaN
    codes = np.arange(finite, dtype=np.uint32) << np.uint32(23 - bits)
    edges = np.full((_EXPONENTS << bits) + 1, np.inf)
    edges[:finite] = codes.view(np.float32)
    edges[finite] = 2.0**128
    edges[: 1 << bits] = 0.0  # zeros, and what is below the smallest normal number
    edges.flags.writeable = False
    return edges


def table_record(counts: Counts, energy: Floats) -> dict[str, Any]:
    """Return JSON values of the sketches of layers; ``layer_sketch`` reads them.

    Layers share a range of bins, which reaches ``OCTAVES`` octaves below the largest entry of each. Otherwise the
    values are those of ``Sketch.as_record``.

    Args:
        counts: int64 ``[layers, 2, 256 << bits]``.
        energy: float64 ``[layers, 256 << bits]``.

    Example:
        >>> import torch
        >>> from gaussiank import ops
        >>> found = ops.magnitudes(torch.tensor([3.0, -1.0, 2.0, 0.0]), [1, 3], 4, 1)
        >>> record = table_record(found.part_counts.numpy(), found.part_energy.numpy())
        >>> layer_sketch(record, 1).numel, layer_sketch(record, 1).square_sum
        (3, 5.0)
    """
    one = energy.shape[1] // 256
    counts = counts.astype(np.uint32)
    both = counts[:, 0] + counts[:, 1]
    filled = np.flatnonzero(both[:, one:-one].any(axis=0))
    first = last = 0
    if filled.size:
        first, last = int(filled[0]) + one, int(filled[-1]) + one + 1
        tops = last - both[:, last - 1 : first - 1 : -1].astype(bool).argmax(axis=1)  # ends of the layers that have any
        first = max(first, int(tops.min()) - OCTAVES * one)
    sums = energy.sum(axis=1)
    shares = energy[:, first:last] / np.where(sums > 0, sums, 1.0)[:, None]
    return {
        "bits": one.bit_length() - 1,
        "first": first,
        "plus": pack(counts[:, 0, first:last], "<u4"),
        "minus": pack(counts[:, 1, first:last], "<u4"),
        "energy": pack(shares, "<f4"),
        "square_sum": sums.tolist(),
        "zeros": both[:, :one].sum(axis=1).tolist(),
        "tiny": both[:, one:first].sum(axis=1).tolist(),
        "nonfinite": both[:, -one:].sum(axis=1).tolist(),
    }


def layer_sketch(record: Mapping[str, Any], layer: int) -> Sketch:
    """Return the sketch of one layer of a ``table_record``.

    Raises:
        ValueError: the record is damaged.
    """
    try:
        rows = {key: unpack(record[key], kind) for key, kind in (("plus", "<u4"), ("minus", "<u4"), ("energy", "<f4"))}
        cut = {key: row.reshape(len(record["square_sum"]), -1)[layer] for key, row in rows.items()}
        each = {key: record[key][layer] for key in ("square_sum", "zeros", "tiny", "nonfinite")}
        return Sketch.restore(int(record["bits"]), int(record["first"]), **cut, **each)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"layers must be what a recorder wrote, got {error!r}. Record the run again.") from None
