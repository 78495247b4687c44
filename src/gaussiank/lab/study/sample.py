"""The vectors of one step on one worker, and the record that becomes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaussiank.lab.study.measure import sketch_layers
from gaussiank.lab.study.sketch import Sketch
from gaussiank.lab.study.vectors import Piece, thin
from gaussiank.layout import Layout
from gaussiank.selector import Selector
from gaussiank.sparse import SparseGradient


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

    def restore(self, residual_after: Tensor) -> None:
        """Put together what the selection saw: what stayed, and what was sent."""
        if self.sparse is None:
            self.accumulated = self.grad.float() if self.residual is None else self.grad + self.residual
        else:
            self.accumulated = residual_after.clone()
            # not added: what has come back since, rounded off or left out of the message, is in the residual there
            self.accumulated[self.sparse.indices] = self.sparse.values

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
        norm = float(mean.float().square().sum())
        self.finite = self.finite and math.isfinite(norm)
        part = self.parts.get(layout)
        if part is not None and part.dense_mean is not None:
            dense = part.dense_mean.float()
            self._dots += float(mean.float() @ dense), norm, float(dense.square().sum())

    def record(self, selectors: Mapping[str, Selector], *, per_layer: bool) -> dict[str, Any]:
        """Return the sample's JSON record.

        Args:
            selectors: operators to try on the accumulated vector.
            per_layer: whether to list every layer.
        """
        whole, layers = self._sketches()
        record: dict[str, Any] = {
            "kind": "sample",
            "step": self.step,
            "density": self.density,
            "numel": sum(part.layout.numel for part in self.parts.values()),
            "vectors": {name: sketch.as_record() for name, sketch in whole.items()},
        }
        if per_layer:
            record["layers"] = layers
        if any(part.accumulated is not None for part in self.parts.values()):
            record |= self._selection(selectors)
        if self._dots[1] * self._dots[2] > 0:
            record["cosine"] = float(self._dots[0] / np.sqrt(self._dots[1] * self._dots[2]))
        return record

    def _sketches(self) -> tuple[dict[str, Sketch], dict[str, dict[str, Any]]]:
        """Return vector -> sketch of the whole model, and layer -> its part of the record."""
        whole: dict[str, Sketch] = {}
        layers: dict[str, dict[str, Any]] = {}
        for part in self.parts.values():
            for name, vector in part.vectors().items():
                total, each = sketch_layers(vector, part.layout.numels)
                whole[name] = whole[name] + total if name in whole else total
                for layer, sketch in zip(part.layout.names, each, strict=True):
                    layers.setdefault(layer, {})[name] = sketch.as_record()
            if part.sparse is not None and part.accumulated is not None:
                for layer, (kept, energy) in zip(part.layout.names, _by_layer(part.layout, part.sparse), strict=True):
                    layers[layer] |= {"kept": kept, "sent_energy": energy}
        return whole, layers

    def _selection(self, selectors: Mapping[str, Selector]) -> dict[str, Any]:
        parts = [part for part in self.parts.values() if part.accumulated is not None]
        energy = sum(_energy(part.accumulated) for part in parts if part.accumulated is not None)
        sent = [(part.layout.numel if part.sparse is None else part.sparse.kept) for part in parts]
        left = sum(0.0 if part.sparse is None else _left(part.accumulated, part.sparse) for part in parts)
        tried: dict[str, Any] = {}
        for name, selector in selectors.items():
            kept, remains = 0, 0.0
            for part in parts:
                if part.accumulated is not None:
                    sparse = selector.select(part.layout, part.accumulated, self.density, self.step)
                    kept += sparse.kept
                    remains += _left(part.accumulated, sparse)
            tried[name] = {"kept": kept, "contraction": remains / energy if energy else 0.0}
        return {
            "k": sum(part.k for part in parts),
            "kept": sum(sent),
            "contraction": left / energy if energy else 0.0,
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
                    contraction=_left(part.accumulated, part.sparse) / energy if energy else 0.0,
                )
            )
        return tuple(pieces)


def _energy(vector: Tensor) -> float:
    return float(vector.double().square().sum())


def _left(accumulated: Tensor | None, sparse: SparseGradient) -> float:
    """Return the energy that a selection leaves."""
    assert accumulated is not None
    rest = accumulated.double()
    rest[sparse.indices] = 0
    return float(rest.square().sum())


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
