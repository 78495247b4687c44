"""From an accumulated vector to what is sent: density, scope, hints, and the first look for infinities and NaN."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.codec import SharedDraw
from gaussiank.compressors import Compressor, Taken, Turn, finish_take
from gaussiank.layout import Layout
from gaussiank.schedule import entries
from gaussiank.sparse import SparseGradient


@dataclass
class Selector:
    """Run a compressor on a flat vector as a whole, or parameter by parameter, and remember its hints.

    Args:
        compressor: what chooses.
        per_layer: count k for each parameter by itself; otherwise once for the vector.
        rank: this worker's rank.
    """

    compressor: Compressor
    per_layer: bool
    rank: int
    hints: dict[str, Tensor] = field(default_factory=dict)

    def k(self, layout: Layout, density: float) -> int:
        """Return the entries asked of a vector with this layout."""
        return sum(entries(density, numel) for _, numel in self._segments(layout))

    def capacity(self, layout: Layout, density: float) -> int | None:
        """Return the largest count that ``select`` can return for this layout, or None when only the data limits it."""
        total = 0
        for _, numel in self._segments(layout):
            bound = self.compressor.capacity(entries(density, numel), numel)
            if bound is None:
                return None
            total += bound
        return total

    def select(self, layout: Layout, accumulated: Tensor, density: float, step: int) -> SparseGradient:
        """Choose what to send of ``accumulated``.

        Infinities and NaN, if there are any, are all that is sent, as many as fit: every worker must see them, and
        nothing else of such a step matters.
        """
        if not self.compressor.nonfinite_first and not bool(ops.all_finite(accumulated)):
            capacity = self.capacity(layout, density) or accumulated.numel()
            return SparseGradient.pick(accumulated, ops.nonfinite_indices(accumulated, capacity))
        chosen: list[Tensor] = []
        for key, place, k in self._places(layout, density):
            indices, hint = self.compressor.select(accumulated[place], k, self._turn(key, step))
            self._remember(key, hint)
            chosen.append(indices + place.start if place.start else indices)
        return SparseGradient.pick(accumulated, chosen[0] if len(chosen) == 1 else torch.cat(chosen))

    def take(
        self, layout: Layout, grad: Tensor, residual: Tensor, out: Tensor, density: float, step: int
    ) -> SparseGradient:
        """Write ``residual + grad`` to ``out``, choose what to send of it, and remove that from ``out``.

        In one pass over memory where the compressor has a fused form. Infinities and NaN are sent as by ``select``,
        segment by segment.

        Args:
            layout: what lies in the vectors.
            grad: ``[numel]`` what the residual grows by. Not modified.
            residual: ``[numel]``. Not modified.
            out: ``[numel]`` apart from both.
            density: share of entries to send.
            step: number of the step.
        """
        parts: list[Taken] = []
        for key, place, k in self._places(layout, density):
            turn, target = self._turn(key, step), out[place]
            taken = self.compressor.take(grad[place], residual[place], target, k, turn)
            if taken is None:
                ops.accumulate(residual[place], grad[place], out=target)
                finite = self.compressor.nonfinite_first or bool(ops.all_finite(target))
                taken = finish_take(self.compressor, target, k, turn, finite=finite)
            self._remember(key, taken.hint)
            parts.append(taken._replace(indices=taken.indices + place.start) if place.start else taken)
        if len(parts) == 1:
            return SparseGradient(parts[0].indices, parts[0].values, layout.numel)
        indices = torch.cat([part.indices for part in parts])
        return SparseGradient(indices, torch.cat([part.values for part in parts]), layout.numel)

    def shared(self, layout: Layout, density: float, step: int, part: int, device: torch.device) -> SharedDraw | None:
        """Return how the indices of this step were drawn, or None unless the compressor ``draws_alike``.

        Args:
            layout: what lies in the vector.
            density: share of entries to send.
            step: number of the step.
            part: number of this exchange within its step, the same on every worker.
            device: where the vector is: generators differ between devices.
        """
        if not self.compressor.draws_alike:
            return None

        drawn: Tensor | None = None

        def draw(numel: int, count: int) -> Tensor:
            nonlocal drawn
            if drawn is None:
                parts = [
                    self.compressor.drawn(place.stop - place.start, k, self._turn(key, step), device) + place.start
                    for key, place, k in self._places(layout, density)
                ]
                drawn = torch.cat(parts)
            return drawn

        return SharedDraw(zlib.crc32(repr(self.compressor).encode()), step, part, draw)

    def load_hints(self, hints: Mapping[str, Tensor]) -> None:
        """Replace the hints by saved ones."""
        self.hints = {key: hint.clone() for key, hint in hints.items()}

    def _turn(self, key: str, step: int) -> Turn:
        return Turn(step, self.rank, zlib.crc32(key.encode()), self.hints.get(key))

    def _remember(self, key: str, hint: Tensor | None) -> None:
        if hint is not None:
            self.hints[key] = hint

    def _places(self, layout: Layout, density: float) -> Iterator[tuple[str, slice, int]]:
        """Yield each vector that k is counted on: its key, its place, and k."""
        start = 0
        for key, numel in self._segments(layout):
            yield key, slice(start, start + numel), entries(density, numel)
            start += numel

    def _segments(self, layout: Layout) -> list[tuple[str, int]]:
        """Name the vectors that k is counted on, with their lengths; a parameter without entries has none."""
        if self.per_layer:
            return [(name, numel) for name, numel in zip(layout.names, layout.numels, strict=True) if numel]
        return [(f"{layout.names[0]}..{layout.names[-1]}", layout.numel)]
