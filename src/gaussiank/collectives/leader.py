"""Leader: one worker says which entries, everyone sends its values of them, and traffic stays below a limit."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gaussiank import cost, ops
from gaussiank.codec import Wire, sections
from gaussiank.comm import Work
from gaussiank.cost import FLAG_BYTES, Cost, Load
from gaussiank.sparse import SparseGradient

from .base import Collective, ExchangeContext, Outcome, Program
from .packing import (
    EXACT,
    agree_on_capacity,
    at_drawn,
    largest_mask,
    member_mask,
    pick,
    quantize,
    quantize_and_pack,
    rest_of,
    row_bytes,
    summed_mean,
    unpack,
)


class Sums(NamedTuple):
    """What came of it.

    Attributes:
        values: ``[k]`` sums over workers in rank order, the same bits on every worker.
        errors: what was rounded off: this worker's values, and the sums of its share.
        flagged: whether any worker raised its flag.
    """

    values: Tensor
    errors: tuple[SparseGradient, ...]
    flagged: bool


def share_bytes(k: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
    """Return the length of a message with a share of ``k`` values."""
    return sections.values_bytes(wire, cost.share_of(k, world_size), dtype) + FLAG_BYTES


def sums(sparse: SparseGradient, context: ExchangeContext, *, flag: bool) -> Generator[Work[Any], Any, Sums]:
    """Sum values over workers that have the same indices, in two messages that are both as narrow as the wire.

    Values are rounded as they leave, a share of them in each message; sums are rounded once more by the owner of the
    share. Both errors are returned, so nothing is lost over all workers.

    Args:
        sparse: entries, at the same indices on every worker.
        context: communicator, wire and seeds.
        flag: a bit that all workers get to see if any raises it.
    """
    comm, wire, dtype = context.comm, context.wire, sparse.values.dtype
    width = cost.share_of(sparse.kept, comm.world_size)
    places = [slice(rank * width, (rank + 1) * width) for rank in range(comm.world_size)]
    shares = [SparseGradient(sparse.indices[place], sparse.values[place], sparse.numel) for place in places]
    device = sparse.values.device
    quantized = [quantize(share, wire, context.generator(device, rank)) for rank, share in enumerate(shares)]
    flags = sparse.values.new_full((FLAG_BYTES,), flag, dtype=torch.uint8)
    rows = [torch.cat([sections.write_values(wire, one.sparse.values, width), flags]) for one in quantized]
    received = yield comm.all_to_all(torch.stack(rows))
    own = shares[comm.rank]
    total = torch.zeros_like(own.values)
    for row in received:  # in rank order
        total += sections.read_values(wire, row[:-FLAG_BYTES], own.kept, width, dtype)
    own_sums = SparseGradient(own.indices, total, sparse.numel)
    owned = quantize(own_sums, wire, context.generator(device, comm.world_size))
    payload = sections.write_values(wire, owned.sparse.values, width)
    gathered = yield comm.all_gather(torch.cat([payload, received[:, -FLAG_BYTES:].amax(0)]))
    parts = [
        sections.read_values(wire, row[:-FLAG_BYTES], share.kept, width, dtype)
        for row, share in zip(gathered, shares, strict=True)
    ]
    errors: tuple[SparseGradient, ...] = owned.errors()
    if not wire.exact:
        error = torch.cat([one.error for one in quantized if one.error is not None])
        errors = SparseGradient(sparse.indices, error, sparse.numel), *errors
    return Sums(torch.cat(parts), errors, bool(gathered[:, -FLAG_BYTES:].any()))


@dataclass(frozen=True)
class Leader(Collective):
    """Take turns in choosing: the leader's indices are broadcast, and the values there are summed, a share by each.

    Worker ``(step + part) mod P`` leads. The others draw what they keep at its indices out of their residuals, and put
    back what they had selected elsewhere. Indices travel by the wire's index code, down a tree of workers, values by
    its value code, to the worker that sums them and back: what is rounded off stays with the worker that rounded it.
    Each worker sends (P - 1) / P of the indices and 2 (P - 1) / P of the values, as little as any all-reduce can: that
    grows from 1/2 to 1 of its limit, by a quarter from 4 to 16 workers.
    A worker with infinities or NaN says so along with its values; then all selections are gathered instead.

    Source: Chen et al. 2020, "ScaleCom: Scalable Sparsified Gradient Compression for Communication-Efficient
    Distributed Training", section 3 (CLT-k). Differs: buckets of one step have different leaders, so that no worker
    sends all index lists; the residual is exact, without the paper's low-pass filter.
    """

    sends_values_alone: ClassVar[bool] = True  # then there is no leader, and nothing comes back

    def rejects(self, *, bounded: bool) -> bool:
        """Whatever a worker selected that the leader did not."""
        return True

    def cost(self, load: Load, world_size: int) -> Cost:
        """A broadcast down a binomial tree, then the sums; bytes are the mean over a worker's turns."""
        return cost.leader(load, world_size)

    def message_bytes(self, k: int, numel: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
        """A selection with infinities or NaN; indices and values alone take less."""
        alone = sections.indices_bytes(wire, k, numel), share_bytes(k, world_size, wire, dtype)
        return max(row_bytes(k, numel, _told_by(wire), dtype), *alone)

    def program(self, sparse: SparseGradient, context: ExchangeContext) -> Program:
        """Broadcast the leader's indices, then sum everyone's values there.

        1. *Tell*: the leader broadcasts its indices; left out where all have drawn the same.
        2. *Draw*: everyone takes what stands at them out of its own selection and residual.
        3. *Sum* (``sums``): each worker gets a share of everyone's values, adds it up in rank order, and gathers the
           sums; a flag that travels along says whether some worker has infinities or NaN.
        4. Only then, *gather* all selections instead, so that every worker sees where they are.
        """
        comm, capacity, numel = context.comm, context.capacity, sparse.numel
        if capacity is None:
            capacity = yield from agree_on_capacity(comm, sparse)
        if context.shared is not None:
            indices = context.shared.draw(numel, capacity)
            entries, chosen = at_drawn(sparse, indices), torch.ones_like(sparse.indices, dtype=torch.bool)
        else:
            indices = yield from _told(sparse, context, capacity)
            chosen = member_mask(sparse.indices, among=indices)
            values = (
                sparse.values.new_zeros(indices.numel()) if context.take_more is None else context.take_more(indices)
            )
            values[torch.searchsorted(indices, sparse.indices[chosen])] += sparse.values[chosen]
            entries = SparseGradient(indices, values, numel)
        total = yield from sums(entries, context, flag=not bool(ops.all_finite(sparse.values)))
        if total.flagged:
            yield from _everything(sparse, context, capacity)
            return

        out = yield None
        finite = summed_mean(SparseGradient(indices, total.values, numel), comm.world_size, out)
        yield Outcome(finite, rest_of(sparse, chosen), total.errors)


def _told(sparse: SparseGradient, context: ExchangeContext, capacity: int) -> Generator[Work[Any], Any, Tensor]:
    """Let the leader of this exchange tell its indices to all."""
    comm, numel = context.comm, sparse.numel
    leader = (context.step + context.part) % comm.world_size
    if comm.rank == leader:
        row = sections.write_indices(context.wire, sparse.indices, numel, capacity)
    else:
        length = sections.indices_bytes(context.wire, capacity, numel)
        row = torch.empty(length, dtype=torch.uint8, device=sparse.indices.device)
    row = yield comm.broadcast(row, leader)
    return sparse.indices if comm.rank == leader else sections.read_indices(context.wire, row, numel)


def _everything(sparse: SparseGradient, context: ExchangeContext, capacity: int) -> Program:
    """Gather all selections: some worker's are not finite, and every worker must see where."""
    wire = _told_by(context.wire)
    largest = pick(sparse, largest_mask(sparse, capacity))
    row, _ = quantize_and_pack(largest, wire, capacity, replace(context, wire=wire).generator(sparse.values.device))
    rows = yield context.comm.all_gather(row)
    out = yield None
    parts = unpack(rows, wire, [sparse.numel] * len(rows), sparse.values.dtype, capacity)
    yield Outcome(ops.scatter_mean(parts, out))


def _told_by(wire: Wire) -> Wire:
    """Return the wire of selections with infinities or NaN, which must say where they are."""
    return EXACT if wire.index == "seed" else wire
