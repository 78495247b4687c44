"""How old a residual is: steps since its entry was last sent, followed on a random few thousand entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussiank.layout import Layout
from gaussiank.sparse import SparseGradient

TRACKED = 4096

Sent = tuple[int, int, Layout, SparseGradient | None]
"""What a step sent: the step, k, what lies in the vector, and the entries; None for all."""


class Ages:
    """Follow some entries of a model and know when each was last sent.

    The share of entries older than a given age is good to about 1.6 points (two deviations of a sample of 4096).

    Args:
        numels: name -> numel of every parameter.
        seed: number that the choice of entries starts from.

    Example:
        >>> ages = Ages({"w": 3})
        >>> one = SparseGradient(torch.tensor([1], dtype=torch.int32), torch.ones(1), 3)
        >>> ages.sent([(0, 1, Layout(("w",), (3,)), one)])
        >>> ages.summary(step=9)["mean"], round(ages.summary(step=9)["never_sent"], 2)
        (9.666666666666666, 0.67)
    """

    def __init__(self, numels: Mapping[str, int], seed: int = 0) -> None:
        total = sum(numels.values())
        chosen = np.sort(np.random.default_rng(seed).choice(total, min(TRACKED, total), replace=False))
        # name -> place in what is followed, and positions in the parameter
        self._offsets: dict[str, tuple[int, NDArray[np.int64]]] = {}
        start = 0
        for name, numel in numels.items():
            first, last = np.searchsorted(chosen, (start, start + numel))
            self._offsets[name] = int(first), chosen[first:last] - start
            start += numel
        self._followed: dict[Layout, _Followed] = {}
        self._sent_at = np.full(chosen.size, -1)

    def sent(self, log: Sequence[Sent]) -> None:
        """Note what steps sent, many at once: that costs next to nothing a step."""
        rows: dict[Layout, list[tuple[int, NDArray[np.int32]]]] = {}
        last: Layout | None = None
        for step, _, layout, sparse in log:
            if layout is not last:  # comparing layouts takes longer than all else here
                last, those = layout, rows.setdefault(layout, [])
            if sparse is None:
                followed = self._find(layout).numbers
                self._sent_at[followed] = np.maximum(self._sent_at[followed], step)
            else:
                those.append((step, sparse.indices.cpu().numpy()))
        for layout, those in rows.items():
            if those:
                indices = np.concatenate([found for _, found in those])
                steps = np.repeat([step for step, _ in those], [found.size for _, found in those])
                hits, numbers = self._find(layout).among(indices)
                np.maximum.at(self._sent_at, numbers, steps[hits])

    def summary(self, step: int) -> dict[str, float]:
        """Return mean, median and 90th percentile of the age after ``step``, in steps; 0 was sent in it.

        An entry that was never sent is one step older than the run.
        """
        ages = step - self._sent_at
        middle, high = ages.size // 2, ages.size * 9 // 10
        ordered = np.partition(ages, (middle, high))
        return {
            "tracked": int(ages.size),
            "mean": float(ages.mean()),
            "median": float(ordered[middle]),
            "p90": float(ordered[high]),
            "never_sent": float((ages > step).mean()),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return when each followed entry was last sent."""
        return {"sent_at": torch.from_numpy(self._sent_at.copy())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where ``state_dict`` was taken, of the same model and seed.

        Raises:
            ValueError: the model has another number of entries.
        """
        sent_at = state["sent_at"].numpy()
        if sent_at.shape != self._sent_at.shape:
            raise ValueError(f"ages must follow {self._sent_at.size} entries, got {sent_at.size}. Load its own.")
        self._sent_at = sent_at.copy()

    def _find(self, layout: Layout) -> _Followed:
        if layout not in self._followed:
            numbers, positions = [], []
            for name, place in layout.slices():
                first, offsets = self._offsets[name]
                numbers.append(np.arange(first, first + offsets.size))
                positions.append(offsets + place.start)
            self._followed[layout] = _Followed(np.concatenate(numbers), np.concatenate(positions), layout.numel)
        return self._followed[layout]


class _Followed:
    """Know which entries of a vector are followed.

    Args:
        numbers: of the followed entries that lie in the vector.
        positions: where each lies, ascending.
        numel: length of the vector.
    """

    def __init__(self, numbers: NDArray[np.int64], positions: NDArray[np.int64], numel: int) -> None:
        self.numbers = numbers
        self._positions = positions
        self._bits = np.zeros(numel // 8 + 1, dtype=np.uint8)  # one bit an entry: small enough to stay in the cache
        np.bitwise_or.at(self._bits, positions >> 3, (1 << (positions & 7)).astype(np.uint8))

    def among(self, indices: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which of the indices are of followed entries, and the numbers of those."""
        hits = np.flatnonzero(self._bits[indices >> 3] & (1 << (indices & 7)).astype(np.uint8))
        return hits, self.numbers[np.searchsorted(self._positions, indices[hits])]
