"""What is looked at in a step: samples of every vector, what was sent, and the ages of residuals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussiank import ops
from gaussiank.layout import Layout
from gaussiank.reducer import Selector
from gaussiank.sparse import SparseGradient
from gaussiank_lab.study.sketch import LAYER_BITS, MANTISSA_BITS, Counts, Floats, Sketch, table_record
from gaussiank_lab.study.vectors import StoredPiece, thin


def sketch_of(vector: Tensor) -> Sketch:
    """Return the sketch of a flat vector; what is not float32 is converted.

    Args:
        vector: float ``[numel]``. Not modified.

    Example:
        >>> import torch
        >>> sketch_of(torch.tensor([1.0, float("nan")])).nonfinite
        1
    """
    return sketch_layers(vector, [vector.numel()])[0]


def sketch_layers(vector: Tensor, numels: Sequence[int]) -> tuple[Sketch, Counts, Floats]:
    """Sketch a vector as a whole, and coarsely (``LAYER_BITS``) each of the layers that lie end to end in it.

    Args:
        vector: float ``[numel]``. Not modified.
        numels: lengths of the layers.

    Returns:
        The sketch of all, and int64 ``[layers, 2, bins]`` counts and float64 ``[layers, bins]`` energies of each.
    """
    found = ops.magnitudes(vector, numels, MANTISSA_BITS, LAYER_BITS)
    whole = Sketch(found.counts.numpy(), found.energy.numpy())
    return whole, found.part_counts.numpy(), found.part_energy.numpy()


class SentLog:
    """Put aside what each step sends, and count it when a sample is written.

    What is done at every step costs as much as a sample when steps are short, so a step only appends to a list.

    Args:
        numels: name -> numel of every parameter whose residuals age; none where there are no residuals.

    Example:
        >>> import torch
        >>> log = SentLog({"w": 4})
        >>> one = SparseGradient(torch.tensor([1], dtype=torch.int32), torch.ones(1), 4)
        >>> log.note(0, 2, Layout(("w",), (4,)), one)
        >>> log.record(step=0)["since"]
        {'step': [0], 'k': [2], 'kept': [1]}
    """

    def __init__(self, numels: Mapping[str, int]) -> None:
        self._ages = Ages(numels) if numels else None
        self._waiting: list[Sent] = []
        self._entries, self._limit = 0, max(10_000, sum(numels.values()) // 8)  # at most a byte an entry of the model
        self._since: dict[int, list[int]] = {}  # step -> [k, kept]

    def note(self, step: int, k: int, layout: Layout, sparse: SparseGradient | None) -> None:
        """Note what a step sent of the parameters in ``layout``; None for all."""
        self._waiting.append((step, k, layout, sparse))
        self._entries += 0 if sparse is None else sparse.indices.numel()
        if self._entries > self._limit:
            self.read()

    def read(self) -> None:
        """Count what was put aside."""
        waiting, self._waiting, self._entries = self._waiting, [], 0
        for step, k, layout, sparse in waiting:
            row = self._since.setdefault(step, [0, 0])
            row[0] += k
            row[1] += layout.numel if sparse is None else sparse.indices.numel()
        if self._ages is not None:
            self._ages.sent(waiting)

    def record(self, step: int) -> dict[str, Any]:
        """Return the fields of a sample's record, and begin anew."""
        self.read()
        since, self._since = self._since, {}
        counts = {
            "step": list(since), "k": [k for k, _ in since.values()], "kept": [kept for _, kept in since.values()]
        }  # fmt: skip
        return {"since": counts} if self._ages is None else {"age": self._ages.summary(step), "since": counts}

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted so far."""
        self.read()
        since = {step: list(row) for step, row in self._since.items()}
        return {"since": since, "ages": None if self._ages is None else self._ages.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; an empty state begins anew.

        Raises:
            ValueError: the ages are of another model.
        """
        self._waiting, self._entries = [], 0
        self._since = {step: list(row) for step, row in state.get("since", {}).items()}
        if self._ages is not None and state.get("ages") is not None:
            self._ages.load_state_dict(state["ages"])


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
        self._followed: dict[Layout, _FollowedEntries] = {}
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

    def _find(self, layout: Layout) -> _FollowedEntries:
        if layout not in self._followed:
            numbers, positions = [], []
            for name, place in layout.slices():
                first, offsets = self._offsets[name]
                numbers.append(np.arange(first, first + offsets.size))
                positions.append(offsets + place.start)
            self._followed[layout] = _FollowedEntries(np.concatenate(numbers), np.concatenate(positions), layout.numel)
        return self._followed[layout]


class _FollowedEntries:
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


@dataclass(eq=False)
class SampledPart:
    """One flat vector of the step: a bucket, or a whole model.

    Attributes:
        layout: parameters in it.
        grad: copy of the local gradient.
        residual: the residual before the step, or None when there is no error feedback to read.
        dense_mean: mean of the gradients of all workers, when asked for.
        k: entries asked for.
        sparse: what was sent; None when everything was.
        accumulated: what the selection saw, known after the step.
    """

    layout: Layout
    grad: Tensor
    residual: Tensor | None = None
    dense_mean: Tensor | None = None
    k: int = 0
    sparse: SparseGradient | None = None
    accumulated: Tensor | None = None

    def add_up(self) -> None:
        """Compute what the selection saw: gradient plus residual."""
        self.accumulated = self.grad.float() if self.residual is None else self.grad + self.residual

    def read_back(self, residual_after: Tensor) -> None:
        """Put together what the selection saw: what stayed, and what was selected; ``residual_after`` becomes it.

        What of the selected entries came back, refused or rounded off, is in both, so they replace and do not add.
        """
        if self.sparse is None:
            self.add_up()
        else:
            self.accumulated = residual_after
            self.accumulated[self.sparse.indices.long()] = self.sparse.values

    def vectors(self) -> dict[str, Tensor]:
        """Return the vectors there are, by the names they have in records."""
        named = {"grad": self.grad, "residual": self.residual, "accumulated": self.accumulated}
        return {name: vector for name, vector in named.items() if vector is not None}


class Sample:
    """Collect one step of one worker.

    Args:
        step: number of the step.
        density: density that was asked for.
    """

    def __init__(self, step: int, density: float) -> None:
        self.step = step
        self.density = density
        self.parts: dict[Layout, SampledPart] = {}
        self.finite = True
        self._dots = np.zeros(3)  # mean . dense mean, |mean|^2, |dense mean|^2

    def compare(self, layout: Layout, mean: Tensor) -> None:
        """Take in a mean that arrived: is it finite, and how does it lie to the mean of the dense gradients?"""
        mean = mean.float()
        norm = float(mean @ mean)
        self.finite = self.finite and math.isfinite(norm)
        part = self.parts.get(layout)
        if part is not None and part.dense_mean is not None:
            dense = part.dense_mean.float()
            self._dots += float(mean @ dense), norm, float(dense @ dense)

    def record(self, selectors: Mapping[str, Selector], *, per_layer: bool) -> dict[str, Any]:
        """Return the sample's JSON record.

        Args:
            selectors: operators to try on the accumulated vector.
            per_layer: whether to list every layer.
        """
        whole, tables = self._sketches()
        record: dict[str, Any] = {
            "kind": "sample",
            "step": self.step,
            "density": self.density,
            "numel": sum(part.layout.numel for part in self.parts.values()),
            "vectors": {name: sketch.as_record() for name, sketch in whole.items()},
        }
        if per_layer:
            record["tables"] = tables
            record["layers"] = self._layers()
        if any(part.accumulated is not None for part in self.parts.values()):
            record |= self._selection(selectors, whole["accumulated"].square_sum)
        if self._dots[1] * self._dots[2] > 0:
            record["cosine"] = float(self._dots[0] / np.sqrt(self._dots[1] * self._dots[2]))
        return record

    def _sketches(self) -> tuple[dict[str, Sketch], list[dict[str, Any]]]:
        """Return vector -> sketch of the whole model, and for each part the records of its layers."""
        whole: dict[str, Sketch] = {}
        tables = []
        for part in self.parts.values():
            table: dict[str, Any] = {"names": part.layout.names}
            for name, vector in part.vectors().items():
                total, counts, energy = sketch_layers(vector, part.layout.numels)
                whole[name] = whole[name] + total if name in whole else total
                table[name] = table_record(counts, energy)
            tables.append(table)
        return whole, tables

    def _layers(self) -> dict[str, dict[str, Any]]:
        """Return layer -> what was sent of it."""
        layers: dict[str, dict[str, Any]] = {}
        for part in self.parts.values():
            layers |= {name: {} for name in part.layout.names}
            if part.sparse is not None and part.accumulated is not None:
                for layer, (kept, energy) in zip(part.layout.names, _by_layer(part.layout, part.sparse), strict=True):
                    layers[layer] = {"kept": kept, "sent_energy": energy}
        return layers

    def _selection(self, selectors: Mapping[str, Selector], energy: float) -> dict[str, Any]:
        parts = [part for part in self.parts.values() if part.accumulated is not None]
        numel = sum(part.layout.numel for part in parts)
        sent = [(part.layout.numel if part.sparse is None else part.sparse.kept) for part in parts]
        tried: dict[str, Any] = {}
        for name, selector in selectors.items():
            kept, took = 0, 0.0
            for part in parts:
                if part.accumulated is not None:
                    sparse = selector.select(part.layout, part.accumulated, self.density, self.step)
                    kept += sparse.kept
                    took += _taken(part.accumulated, sparse)
            tried[name] = {"kept": kept, "contraction": _rest(took, energy, kept == numel)}
        took = sum(_taken(part.accumulated, part.sparse) for part in parts)
        return {
            "k": sum(part.k for part in parts),
            "kept": sum(sent),
            "contraction": _rest(took, energy, sum(sent) == numel),
            "operators": tried,
        }

    def pieces(self, stride: int, *, segments_per_layer: bool) -> tuple[StoredPiece, ...]:
        """Return the accumulated vectors to keep for replay, one of every ``stride`` entries of each layer."""
        pieces = []
        for part in self.parts.values():
            if part.accumulated is None or part.sparse is None:
                continue
            vector, numels = thin(part.accumulated.float().cpu().numpy(), part.layout.numels, stride)
            energy = _energy(part.accumulated)
            pieces.append(
                StoredPiece(
                    names=part.layout.names,
                    numels=numels,
                    accumulated=vector,
                    hints=_hints(part.layout, part.sparse) if segments_per_layer else (_hint(part.sparse.values),),
                    density=self.density,
                    k=part.k,
                    kept=part.sparse.kept,
                    contraction=_rest(
                        _taken(part.accumulated, part.sparse), energy, part.sparse.kept == part.layout.numel
                    ),
                )
            )
        return tuple(pieces)


def _energy(vector: Tensor) -> float:
    return float(vector.double().square().sum())


def _rest(taken: float, energy: float, everything: bool) -> float:
    """Return the share that stays; what both sums round makes it neither negative nor, where all is taken, positive."""
    return max(0.0, 1.0 - taken / energy) if energy and not everything else 0.0


def _taken(accumulated: Tensor | None, sparse: SparseGradient | None) -> float:
    """Return the energy that a selection takes; None takes everything."""
    assert accumulated is not None
    if sparse is None:
        return _energy(accumulated)
    return float(accumulated[sparse.indices].double().square().sum())


def _by_layer(layout: Layout, sparse: SparseGradient) -> Sequence[tuple[int, float]]:
    """Count what was sent of every layer, with its energy."""
    ends = np.cumsum(layout.numels)
    places = np.searchsorted(sparse.indices.cpu().numpy(), np.concatenate(([0], ends)))
    energies = np.concatenate(([0.0], np.cumsum(sparse.values.double().square().cpu().numpy())))
    kept, energy = np.diff(places), np.diff(energies[places])
    return list(zip(kept.tolist(), energy.tolist(), strict=True))


def _hints(layout: Layout, sparse: SparseGradient) -> tuple[float, ...]:
    indices = sparse.indices.long()
    return tuple(
        _hint(sparse.values[(indices >= place.start) & (indices < place.stop)])
        for _, place in layout.slices()
        if place.stop > place.start
    )


def _hint(values: Tensor) -> float:
    """Return the float32 just below the smallest magnitude sent: the largest threshold that lets the same through."""
    if values.numel() == 0:
        return math.nan
    smallest = values.abs().min().float()
    return float(torch.nextafter(smallest, torch.zeros_like(smallest)))
