"""Leader: one worker says which entries, everyone sends its values of them, and nothing grows with the workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.codec import Wire
from gaussiank.sparse import SparseGradient

from .collective import Call, Collective, Outcome, Program, Traffic
from .rows import (
    EXACT,
    agree_on_capacity,
    gathered_mean,
    largest_mask,
    member_mask,
    pack,
    pick,
    rest_of,
    summed_mean,
    unpack,
)


@dataclass(frozen=True)
class Leader(Collective):
    """Take turns in choosing: the leader's indices are broadcast, and the values there are all-reduced.

    Worker ``(step + part) mod P`` leads. The others draw what they keep at its indices out of their residuals, and put
    back what they had selected elsewhere. 4 bytes an entry go down a tree of workers, 8 around a ring, whatever P is.
    The all-reduce adds values up on its way, so they travel as float32 whatever the wire: sums of coarse values are not
    coarse, and nobody could keep what each hop would round off.
    A worker with infinities or NaN says so along with its values; then all selections are gathered instead.

    Source: Chen et al. 2020, "ScaleCom: Scalable Sparsified Gradient Compression for Communication-Efficient
    Distributed Training", section 3 (CLT-k). Differs: buckets of one step have different leaders, so that no worker
    sends all index lists; the residual is exact, without the paper's low-pass filter.
    """

    def rejects(self, *, bounded: bool) -> bool:
        """Whatever a worker selected that the leader did not."""
        return True

    def traffic(self, numel: int, k: int, world_size: int, wire: Wire = EXACT) -> Traffic:
        """A broadcast down a binomial tree, then a ring; bytes are the mean over a worker's turns."""
        share = (world_size - 1) / world_size
        sent_bytes = share * (4 * (k + 1) + 2 * 4 * (k + 1))
        return Traffic((world_size - 1).bit_length() + 2 * (world_size - 1), sent_bytes, 2 * k)

    def program(self, sparse: SparseGradient, call: Call) -> Program:
        """Broadcast the leader's indices, then sum everyone's values there."""
        line, capacity = call.line, call.capacity
        if capacity is None:
            capacity = yield from agree_on_capacity(line, sparse)
        leader = (call.step + call.part) % line.world_size
        named = sparse.indices.new_zeros(1 + capacity)
        if line.rank == leader:
            named[0] = sparse.kept
            named[1 : 1 + sparse.kept] = sparse.indices
        named = yield line.broadcast(named, leader)
        indices = named[1 : 1 + int(named[0])]
        chosen = member_mask(sparse.indices, among=indices)
        values = sparse.values.new_zeros(indices.numel() + 1)
        if call.draw is not None:
            values[:-1] = call.draw(indices)
        values[torch.searchsorted(indices, sparse.indices[chosen])] += sparse.values[chosen]
        values[-1] = torch.where(ops.all_finite(sparse.values), 0.0, torch.nan)
        values = yield line.all_reduce(values)
        if bool(values[-1].isnan()):
            return (yield from _everything(sparse, call, capacity))
        total = SparseGradient(indices, values[:-1], sparse.numel)

        def finish(out: Tensor) -> Outcome:
            return Outcome(summed_mean(total, line.world_size, out), rest_of(sparse, chosen))

        return finish


def _everything(sparse: SparseGradient, call: Call, capacity: int) -> Program:
    """Gather all selections: some worker's are not finite, and every worker must see where."""
    sent = pick(sparse, largest_mask(sparse, capacity))
    rows = yield call.line.all_gather(pack(sent, EXACT, capacity))

    def finish(out: Tensor) -> Outcome:
        parts = unpack(rows, EXACT, [sparse.numel] * len(rows), sparse.values.dtype, capacity)
        return Outcome(gathered_mean(parts, out))

    return finish
