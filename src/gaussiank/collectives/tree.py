"""Tree: pairs of workers merge their entries, keep the largest, and pairs of pairs do the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gaussiank import cost
from gaussiank.codec import Wire
from gaussiank.cost import Cost, Load, swap_rounds
from gaussiank.sparse import SparseGradient

from .base import Collective, ExchangeContext, Outcome, Program
from .packing import (
    agree_on_capacity,
    largest_mask,
    member_mask,
    merge,
    pack,
    pick,
    quantize,
    quantize_and_pack,
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

    What a half sends it rounds to the wire, and goes on with itself, so that both sides merge the same. The lowest
    rank of a half keeps what was rounded off, of entries that no later merge drops: what is dropped comes back whole,
    to those who gave it. The result for guests travels exactly.

    Source: Shi et al. 2019, "A Distributed Synchronous SGD Algorithm with Global Top-k Sparsification for Low Bandwidth
    Networks" (gTop-k), algorithm 2. Differs: an exchange in both directions in place of reduce and broadcast; any
    number of workers.
    """

    def rejects(self, *, bounded: bool) -> bool:
        """Whatever a merge drops."""
        return True

    def cost(self, load: Load, world_size: int) -> Cost:
        """One row a round, and two more messages and rows for each worker beyond a power of two, and its host."""
        return cost.tree(load, world_size)

    def message_bytes(self, k: int, numel: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
        """A row; without a power of two, what a worker beyond it gets at the end, which is exact."""
        answer = row_bytes(k, numel, _exactly(wire), dtype) + k if swap_rounds(world_size)[1] else 0
        return max(answer, row_bytes(k, numel, wire, dtype))

    def program(self, sparse: SparseGradient, context: ExchangeContext) -> Program:
        """Swap, merge, cut, round after round.

        1. *Host*: each worker beyond a power of two, a guest, sends its entries to the worker that many ranks below.
        2. *Rounds*: in round i round to the wire, swap with the worker whose rank differs in bit i, add the lower
           half's entries first, and keep the largest. After the last round all hold the same.
        3. *Answer*: hosts send the result to their guests, exactly, and which of the guest's entries are in it.

        Who has no guest waits with a message of nothing, so that all workers take the same number of turns.
        """
        comm, capacity = context.comm, context.capacity
        if capacity is None:
            capacity = yield from agree_on_capacity(comm, sparse)
        rounds, beyond = swap_rounds(comm.world_size)
        if comm.world_size == 1:
            yield comm.noop()
        if comm.rank >= 1 << rounds:
            yield from _as_guest(sparse, context, capacity, rounds)
            return
        branch = _Branch(sparse, context, capacity)
        guest = comm.rank + (1 << rounds) if comm.rank < beyond else None
        if guest is not None:
            length = row_bytes(capacity, sparse.numel, context.wire, sparse.values.dtype)
            row = yield comm.receive(torch.empty(length, dtype=torch.uint8, device=sparse.indices.device), guest)
            branch.host(row)
        elif beyond:
            yield comm.noop()
        for bit in range(rounds):
            branch.round(bit)
            row = yield comm.sendrecv(branch.row(), comm.rank ^ (1 << bit))
            branch.merge(row, first=bool(comm.rank & (1 << bit)))
        if guest is not None:
            yield comm.send(branch.answer(), guest)
        elif beyond:
            yield comm.noop()

        out = yield None
        finite = summed_mean(branch.total, comm.world_size, out)
        yield Outcome(finite, rest_of(sparse, branch.own.entered), branch.errors())


@dataclass(eq=False)
class _Followed:
    """Entries that a worker answers for, and which of them no merge has dropped so far."""

    sparse: SparseGradient
    entered: Tensor

    @classmethod
    def all_of(cls, sparse: SparseGradient) -> _Followed:
        return cls(sparse, torch.ones_like(sparse.indices, dtype=torch.bool))


class _Branch:
    """What a worker's half has kept so far, and which entries of those it answers for are in it."""

    def __init__(self, sparse: SparseGradient, context: ExchangeContext, capacity: int) -> None:
        self.total = sparse
        self.own = _Followed.all_of(sparse)
        self._context, self._capacity = context, capacity
        self._guest: _Followed | None = None
        self._rounded_off: list[_Followed] = []

    def host(self, row: Tensor) -> None:
        """Take a guest's entries in."""
        visitor = self._read(row)
        self._guest = _Followed.all_of(visitor)
        self._cut(merge([self.total, visitor]))

    def round(self, bit: int) -> None:
        """Go on with values that the wire carries; the lowest rank of this half keeps what that takes off."""
        lowest = self._context.comm.rank >> bit << bit
        generator = self._context.generator(self.total.values.device, bit, lowest)
        quantized = quantize(self.total, self._context.wire, generator)
        self.total = quantized.sparse
        if lowest == self._context.comm.rank:
            self._rounded_off += map(_Followed.all_of, quantized.errors())

    def row(self) -> Tensor:
        """Return what this half has kept, to be sent."""
        return pack(self.total, self._context.wire, self._capacity)

    def merge(self, row: Tensor, *, first: bool) -> None:
        """Add what another branch has kept; ``first``: its ranks are the lower ones."""
        other = self._read(row)
        self._cut(merge([other, self.total] if first else [self.total, other]))

    def answer(self) -> Tensor:
        """Return the result for the guest, and for each of its entries whether it is in."""
        assert self._guest is not None  # hosted
        entered = self._guest.entered.to(torch.uint8)
        total = pack(self.total, _exactly(self._context.wire), self._capacity)
        return torch.cat([total, entered, entered.new_zeros(self._capacity - len(entered))])

    def errors(self) -> tuple[SparseGradient, ...]:
        """Return what was rounded off the entries that are in the result, as far as this worker keeps it."""
        return tuple(pick(followed.sparse, followed.entered) for followed in self._rounded_off)

    def _read(self, row: Tensor) -> SparseGradient:
        return unpack([row], self._context.wire, [self.total.numel], self.total.values.dtype, self._capacity)[0]

    def _cut(self, merged: SparseGradient) -> None:
        self.total = pick(merged, largest_mask(merged, self._capacity))
        for followed in (self.own, *([self._guest] if self._guest else ()), *self._rounded_off):
            followed.entered.logical_and_(member_mask(followed.sparse.indices, among=self.total.indices))


def _as_guest(sparse: SparseGradient, context: ExchangeContext, capacity: int, rounds: int) -> Program:
    """Leave the entries with a host, and get the result and which of the entries are in it."""
    comm, wire = context.comm, _exactly(context.wire)
    row, quantized = quantize_and_pack(sparse, context.wire, capacity, context.generator(sparse.values.device))
    host = comm.rank - (1 << rounds)
    yield comm.send(row, host)
    for _ in range(rounds):
        yield comm.noop()
    length = row_bytes(capacity, sparse.numel, wire, sparse.values.dtype)
    answer = yield comm.receive(row.new_empty(length + capacity), host)
    out = yield None
    [total] = unpack([answer[:length]], wire, [sparse.numel], sparse.values.dtype, capacity)
    entered = answer[length:][: sparse.kept].bool()
    finite = summed_mean(total, comm.world_size, out)
    yield Outcome(finite, rest_of(sparse, entered), quantized.errors(entered))


def _exactly(wire: Wire) -> Wire:
    """Return the wire with values as they are."""
    return replace(wire, values="fp32", rounding="nearest")
