"""The vectors of one step on one worker, and the record that becomes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaussiank.layout import Layout
from gaussiank.reducer import Selector
from gaussiank.sparse import SparseGradient
from gaussiank_lab.study.layer_table import table_record
from gaussiank_lab.study.measure import sketch_layers
from gaussiank_lab.study.sketch import Sketch
from gaussiank_lab.study.vectors import Piece, thin


@dataclass(eq=False)
class Part:
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
        self.parts: dict[Layout, Part] = {}
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

    def pieces(self, stride: int, *, segments_per_layer: bool) -> tuple[Piece, ...]:
        """Return the accumulated vectors to keep for replay, one of every ``stride`` entries of each layer."""
        pieces = []
        for part in self.parts.values():
            if part.accumulated is None or part.sparse is None:
                continue
            vector, numels = thin(part.accumulated.float().cpu().numpy(), part.layout.numels, stride)
            energy = _energy(part.accumulated)
            pieces.append(
                Piece(
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
