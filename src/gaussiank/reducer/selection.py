"""From an accumulated vector to what is sent: density, scope, hints, and the first look for infinities and NaN."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.codec import SharedDraw
from gaussiank.compressors import Compressor, SelectContext, Taken, finish_take
from gaussiank.layout import Layout
from gaussiank.ops import RowFormat, TakenRow
from gaussiank.schedule import entries
from gaussiank.sparse import SparseGradient


class Asked(NamedTuple):
    """What a density asks of a vector.

    Attributes:
        places: of each vector that k is counted on: its key among the hints, its place, and its k.
        k: entries asked for in all.
        capacity: largest count that a selection can have, or None when only the data limits it.
    """

    places: tuple[tuple[str, slice, int], ...]
    k: int
    capacity: int | None


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
    # by layout, with the density that it is of, which seldom changes
    _asked: dict[Layout, tuple[float, Asked]] = field(default_factory=dict, repr=False, compare=False)

    def asked(self, layout: Layout, density: float) -> Asked:
        """Return what a density asks of a vector with this layout."""
        known = self._asked.get(layout)
        if known is None or known[0] != density:
            known = self._asked[layout] = density, self._asked_of(layout, density)
        return known[1]

    def _asked_of(self, layout: Layout, density: float) -> Asked:
        """Count for the whole vector or for each parameter; one without entries has no part in it."""
        names = layout.names
        places = [(f"{names[0]}..{names[-1]}", slice(0, layout.numel))]
        if self.per_layer:
            places = [(name, place) for name, place in layout.slices() if place.start < place.stop]
        numels = [place.stop - place.start for _, place in places]
        ks = [entries(density, numel) for numel in numels]
        bounds = [self.compressor.capacity(k, numel) for k, numel in zip(ks, numels, strict=True)]
        capacity = None if None in bounds else sum(bound for bound in bounds if bound is not None)
        return Asked(tuple((*place, k) for place, k in zip(places, ks, strict=True)), sum(ks), capacity)

    def select(self, layout: Layout, accumulated: Tensor, density: float, step: int) -> SparseGradient:
        """Choose what to send of ``accumulated``.

        Infinities and NaN, if there are any, are all that is sent, as many as fit: every worker must see them, and
        nothing else of such a step matters.
        """
        if not self.compressor.nonfinite_first and not bool(ops.all_finite(accumulated)):
            capacity = self.asked(layout, density).capacity or accumulated.numel()
            return SparseGradient.pick(accumulated, ops.nonfinite_indices(accumulated, capacity))
        chosen: list[Tensor] = []
        for key, place, k in self.asked(layout, density).places:
            indices, hint = self.compressor.select(accumulated[place], k, self._context(key, step))
            if hint is not None:
                self.hints[key] = hint
            chosen.append(indices + place.start if place.start else indices)
        return SparseGradient.pick(accumulated, chosen[0] if len(chosen) == 1 else torch.cat(chosen))

    def take(
        self,
        layout: Layout,
        grad: Tensor,
        residual: Tensor,
        out: Tensor,
        density: float,
        step: int,
        row: RowFormat | None = None,
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
            step: backwards that have exchanged, used by an optimizer or not.
            row: the row that the selection of a whole vector will be sent in, or None.
        """
        row = row if self.compressor.writes_rows and not self.per_layer else None
        parts: list[Taken] = []
        for key, place, k in self.asked(layout, density).places:
            context, target = self._context(key, step, row), out[place]
            taken = self.compressor.take(grad[place], residual[place], target, k, context)
            if taken is None:
                ops.accumulate(residual[place], grad[place], out=target)
                finite = self.compressor.nonfinite_first or bool(ops.all_finite(target))
                taken = finish_take(self.compressor, target, k, context, finite=finite)
            if taken.hint is not None:
                self.hints[key] = taken.hint
            parts.append(taken._replace(indices=taken.indices + place.start) if place.start else taken)
        if len(parts) == 1:
            written = parts[0].row if isinstance(parts[0], TakenRow) else None
            return SparseGradient(parts[0].indices, parts[0].values, layout.numel, written)
        indices = torch.cat([part.indices for part in parts])
        return SparseGradient(indices, torch.cat([part.values for part in parts]), layout.numel)

    def shared(self, layout: Layout, density: float, step: int, part: int, device: torch.device) -> SharedDraw | None:
        """Return how the indices of this step were drawn, or None unless the compressor ``draws_alike``.

        Args:
            layout: what lies in the vector.
            density: share of entries to send.
            step: backwards that have exchanged, used by an optimizer or not.
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
                    self.compressor.drawn(place.stop - place.start, k, self._context(key, step), device) + place.start
                    for key, place, k in self.asked(layout, density).places
                ]
                drawn = torch.cat(parts)
            return drawn

        return SharedDraw(zlib.crc32(repr(self.compressor).encode()), step, part, draw)

    def load_hints(self, hints: Mapping[str, Tensor]) -> None:
        """Replace the hints by saved ones."""
        self.hints = {key: hint.clone() for key, hint in hints.items()}

    def _context(self, key: str, step: int, row: RowFormat | None = None) -> SelectContext:
        return SelectContext(step, self.rank, zlib.crc32(key.encode()), self.hints.get(key), row)
