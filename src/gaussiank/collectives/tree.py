"""Tree: pairs of workers merge their entries, keep the largest, and pairs of pairs do the same."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaussiank.sparse import SparseGradient

from .collective import Call, Collective, Outcome, Program, Traffic
from .line import Line, Message
from .rows import (
    agree_on_capacity,
    largest_mask,
    member_mask,
    merge,
    pack,
    pick,
    rest_of,
    row_bytes,
    summed_mean,
    unpack,
)


@dataclass(frozen=True)
class Tree(Collective):
    """Merge in log2 P rounds, with Top_k after each: k entries of all workers enter, chosen from sums.

    In round i, workers whose ranks differ in bit i swap what their halves have kept so far; both merge it in the same
    order, so no broadcast is needed at the end. Each worker follows its own entries from round to round: one that a
    merge drops goes back to the residual of every worker that had a part in it, even where another branch brings the
    same index through. Without a power of two, the workers beyond one give their entries to a worker before the first
    round and get the result after the last.

    Source: Shi et al. 2019, "A Distributed Synchronous SGD Algorithm with Global Top-k Sparsification for Low Bandwidth
    Networks" (gTop-k), algorithm 2. Differs: an exchange in both directions in place of reduce and broadcast; any
    number of workers.
    """

    def rejects(self, *, bounded: bool) -> bool:
        """Whatever a merge drops."""
        return True

    def traffic(self, numel: int, k: int, world_size: int, value_bytes: int = 4) -> Traffic:
        """One row a round, and two more messages and rows for each worker beyond a power of two, and its host."""
        rounds, beyond = _rounds(world_size)
        row = row_bytes(k, value_bytes)
        rows = (rounds * (1 << rounds) + 2 * beyond) / world_size
        return Traffic(rounds + 2 * bool(beyond), rows * row + beyond * k / world_size, 2 * k * (rounds + bool(beyond)))

    def program(self, sparse: SparseGradient, call: Call) -> Program:
        """Swap, merge, cut, round after round."""
        line, capacity = call.line, call.capacity
        if capacity is None:
            capacity = yield from agree_on_capacity(line, sparse)
        rounds, beyond = _rounds(line.world_size)
        if line.world_size == 1:
            yield line.pause()
        if line.rank >= 1 << rounds:
            total, entered = yield from _as_guest(sparse, line, capacity, rounds)
        else:
            branch = _Branch(sparse, capacity)
            guest = line.rank + (1 << rounds) if line.rank < beyond else None
            if guest is not None:
                row = yield line.receive(torch.empty_like(pack(sparse, capacity)), guest)
                branch.host(row)
            elif beyond:
                yield line.pause()
            for bit in range(rounds):
                row = yield line.swap(pack(branch.total, capacity), line.rank ^ (1 << bit))
                branch.merge(row, first=bool(line.rank & (1 << bit)))
            if guest is not None:
                yield line.send(branch.answer(), guest)
            elif beyond:
                yield line.pause()
            total, entered = branch.total, branch.entered[0]

        def finish(out: Tensor) -> Outcome:
            return Outcome(summed_mean(total, line.world_size, out), rest_of(sparse, entered))

        return finish


class _Branch:
    """What a worker's half has kept so far, and which entries of those it answers for are in it."""

    def __init__(self, sparse: SparseGradient, capacity: int) -> None:
        self.total = sparse
        self._capacity = capacity
        self._given = [sparse]  # this worker's, and its guest's
        self.entered = [torch.ones_like(sparse.indices, dtype=torch.bool)]

    def host(self, row: Tensor) -> None:
        """Take a guest's entries in."""
        visitor = self._read(row)
        self._given.append(visitor)
        self.entered.append(torch.ones_like(visitor.indices, dtype=torch.bool))
        self._cut(merge([self.total, visitor]))

    def merge(self, row: Tensor, *, first: bool) -> None:
        """Add what another branch has kept; ``first``: its ranks are the lower ones."""
        other = self._read(row)
        self._cut(merge([other, self.total] if first else [self.total, other]))

    def answer(self) -> Tensor:
        """Return the result for the guest, and for each of its entries whether it is in."""
        entered = self.entered[1].to(torch.uint8)
        return torch.cat([pack(self.total, self._capacity), entered, entered.new_zeros(self._capacity - len(entered))])

    def _read(self, row: Tensor) -> SparseGradient:
        [part], _ = unpack([row], [self.total.numel], self.total.values.dtype)
        return part

    def _cut(self, merged: SparseGradient) -> None:
        self.total = pick(merged, largest_mask(merged, self._capacity))
        for given, entered in zip(self._given, self.entered, strict=True):
            entered.logical_and_(member_mask(given.indices, among=self.total.indices))


def _as_guest(
    sparse: SparseGradient, line: Line, capacity: int, rounds: int
) -> Generator[Message[Any], Any, tuple[SparseGradient, Tensor]]:
    """Leave the entries with a host; returns the result, and which of the entries are in it."""
    row, host = pack(sparse, capacity), line.rank - (1 << rounds)
    yield line.send(row, host)
    for _ in range(rounds):
        yield line.pause()
    answer = yield line.receive(row.new_empty(row.numel() + capacity), host)
    [total], _ = unpack([answer[: row.numel()]], [sparse.numel], sparse.values.dtype)
    return total, answer[row.numel() :][: sparse.kept].bool()


def _rounds(world_size: int) -> tuple[int, int]:
    """Return log2 of the largest power of two, and how many workers are beyond it."""
    rounds = world_size.bit_length() - 1
    return rounds, world_size - (1 << rounds)
