"""Split: each worker owns a region of the vector, sums what all send of it, and sends the sum to all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.sparse import SparseGradient

from .collective import Call, Collective, Outcome, Program, Traffic
from .rows import agree_on_capacity, largest_mask, member_mask, merge, pack, pick, rest_of, row_bytes, unpack


@dataclass(frozen=True)
class Split(Collective):
    """Exchange regions, sum each at its owner, and gather the sums: traffic does not grow with the workers.

    Every worker sends ``slack * k / (P - 1)`` entries to each owner and, as an owner, as many of its region's sums to
    each worker: ``2 * slack * k`` entries in all, whatever P is. What does not fit goes back to the residuals of those
    who sent it, smallest magnitudes first; each worker sees in the result which of its entries entered, so nothing
    more has to be sent for that. Borders move so that every region holds the same load as at the last step.

    Args:
        trim: keep messages at that size. Otherwise nothing comes back: sizes are exchanged first, two more short
            messages, and the second phase sends all sums, up to P times as many.
        slack: room in a message of the trimmed form; a larger one sends more and delays less.
        rebalance: move the borders; otherwise regions have equal lengths.

    Source: Li & Hoefler 2022, "Near-Optimal Sparse Allreduce for Distributed Deep Learning" (Ok-Topk), section 3.
    Differs: messages have one fixed size, so that no sizes are exchanged; the sums kept are the largest of each
    region, not those above a global threshold; borders follow the load of the last step, at every step.
    """

    trim: bool = True
    slack: float = 1.0
    rebalance: bool = True

    def __post_init__(self) -> None:
        if not self.slack > 0:
            raise ValueError(f"slack must be above 0, got {self.slack}. 1 sends as many sums as entries.")

    def rejects(self, *, bounded: bool) -> bool:
        """Only the lossless form returns nothing."""
        return self.trim

    def traffic(self, numel: int, k: int, world_size: int, value_bytes: int = 4) -> Traffic:
        """The lossless form is taken at its worst: no entry of one worker coincides with another's."""
        peers = world_size - 1
        if self.trim:
            room = self._room(k, world_size)
            return Traffic(world_size if peers else 0, 2 * peers * row_bytes(room, value_bytes), 2 * world_size * room)
        sizes = peers * 8 + 2 * peers * 8 / world_size
        first = peers * row_bytes(0, value_bytes) + peers / world_size * (row_bytes(k, value_bytes) - row_bytes(0))
        return Traffic(
            3 * peers + 2 if peers else 0, sizes + first + peers * row_bytes(k, value_bytes), k + world_size * k
        )

    def program(self, sparse: SparseGradient, call: Call) -> Program:
        """Send each owner its region, then everyone the own region's sum."""
        line, dtype = call.line, sparse.values.dtype
        borders = self._borders(call.hint, sparse.numel, line.world_size)
        widths = [max(1, high - low) for low, high in itertools.pairwise(borders)]
        if self.trim:
            capacity = call.capacity
            if capacity is None:
                capacity = yield from agree_on_capacity(line, sparse)
            room = self._room(capacity, line.world_size)
            parts, wanted, sent = _cut(sparse, borders, room)
            rows = [pack(part, room, count) for part, count in zip(parts, wanted, strict=True)]
            received = yield line.all_to_all(torch.stack(rows))
        else:
            parts, wanted, sent = _cut(sparse, borders, sparse.kept)
            rows = [pack(part, part.kept, count) for part, count in zip(parts, wanted, strict=True)]
            sizes = torch.tensor([[row.numel()] for row in rows]).to(sparse.indices.device)
            arriving = yield line.all_to_all(sizes)
            received = yield line.all_to_all_uneven(rows, arriving.flatten().tolist())
        addends, loads = unpack(received, [widths[line.rank]] * line.world_size, dtype)
        total = merge(addends)
        if self.trim:
            total = pick(total, largest_mask(total, room))
        else:
            room = yield from agree_on_capacity(line, total)
        gathered = yield line.all_gather(pack(total, room, sum(loads)))

        def finish(out: Tensor) -> Outcome:
            parts, loads = unpack(gathered, widths, dtype)
            regions = [
                SparseGradient(part.indices + low, part.values, sparse.numel)
                for part, low in zip(parts, borders, strict=False)
            ]
            ops.scatter_mean(regions, out)  # a region for each worker: dividing by their number is the mean
            indices = torch.cat([region.indices for region in regions])
            finite = ops.all_finite(torch.cat([region.values for region in regions]))
            rejected = rest_of(sparse, sent & member_mask(sparse.indices, indices)) if self.trim else None
            hint = _rebalanced(borders, [region.indices for region in regions], loads) if self.rebalance else None
            return Outcome(finite, rejected, hint)

        return finish

    def _room(self, capacity: int, world_size: int) -> int:
        return min(capacity, math.ceil(self.slack * capacity / max(1, world_size - 1)))

    def _borders(self, hint: Tensor | None, numel: int, world_size: int) -> list[int]:
        if self.rebalance and hint is not None and hint.numel() == world_size + 1 and int(hint[-1]) == numel:
            return [int(border) for border in hint]
        return [numel * region // world_size for region in range(world_size + 1)]


def _cut(sparse: SparseGradient, borders: Sequence[int], room: int) -> tuple[list[SparseGradient], list[int], Tensor]:
    """Cut entries at the borders, with at most ``room`` in a part.

    Returns:
        The parts, with indices that start at their border; the count that each would have had; which entries are in.
    """
    places = torch.searchsorted(
        sparse.indices, torch.tensor(borders[1:-1], dtype=torch.int32, device=sparse.indices.device)
    )
    ends = [0, *places.tolist(), sparse.kept]
    sent = torch.ones_like(sparse.indices, dtype=torch.bool)
    parts, wanted = [], []
    for region, (start, end) in enumerate(itertools.pairwise(ends)):
        low, high = borders[region], borders[region + 1]
        part = SparseGradient(sparse.indices[start:end] - low, sparse.values[start:end], max(1, high - low))
        wanted.append(part.kept)
        if part.kept > room:
            sent[start:end] = largest_mask(part, room)
            part = pick(part, sent[start:end])
        parts.append(part)
    return parts, wanted, sent


def _rebalanced(borders: Sequence[int], indices: Sequence[Tensor], loads: Sequence[int]) -> Tensor:
    """Move the borders to where each region would have held the same load.

    The gathered entries of a region show where in it the load lies. Whole numbers only: every worker must get the
    same borders, whatever its processor.

    Args:
        borders: world_size + 1 of them.
        indices: int32 ``[kept]`` of each region's sums.
        loads: entries that each owner was to get, from all workers.

    Example:
        >>> _rebalanced([0, 4, 8], [torch.arange(4), torch.tensor([6, 7])], [9, 3]).tolist()
        [0, 3, 8]
    """
    weights = [
        torch.full((part.numel(),), (load << 20) // part.numel(), dtype=torch.int64)
        for part, load in zip(indices, loads, strict=True)
        if part.numel()
    ]
    if not weights:
        return torch.tensor(borders)
    everywhere = torch.cat(list(indices)).cpu()
    before = torch.cat(weights).cumsum(0)
    world_size = len(loads)
    targets = torch.tensor([int(before[-1]) * region // world_size for region in range(1, world_size)])
    places = torch.searchsorted(before, targets).clamp_(max=everywhere.numel() - 1)
    inner = (everywhere[places] + 1).tolist() if world_size > 1 else []
    return torch.tensor([borders[0], *inner, borders[-1]])
