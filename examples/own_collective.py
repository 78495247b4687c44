"""A collective of your own: one worker a step says which entries go, and the values there are summed.

    torchrun --nproc-per-node 2 examples/own_collective.py

It is ScaleCom's idea in its shortest form (``leader`` is the library's own). An exchange is a generator: it yields each
message and gets back what arrived; after the last one it yields None, gets the vector for the mean, and says what came
of it. What this worker had selected and the mean does not hold is returned, and stays in the residual.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank
from gaussiank.codec import Wire
from gaussiank.collectives import AllGather, Collective, ExchangeContext, Outcome
from gaussiank.collectives.base import Program
from gaussiank.cost import Cost, Load, Message
from gaussiank.sparse import SparseGradient


@dataclass(frozen=True)
class TakeTurns(Collective):
    """Broadcast int32 indices of worker ``step mod P``, all-reduce float values; for compressors of a known count."""

    def cost(self, load: Load, world_size: int) -> Cost:
        """Return what an exchange costs, for budgets and predictions."""
        return Cost([Message("broadcast", 4 * load.k), Message("all_reduce", 4 * load.k + 4)], 0.0, load.k)

    def message_bytes(self, k: int, numel: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
        """Return the most bytes of one message."""
        return max(4 * k, 2 * (k + 1) * dtype.itemsize)

    def program(self, sparse: SparseGradient, context: ExchangeContext) -> Program:
        """Tell the indices, draw what waits there, sum."""
        assert context.capacity is not None
        assert context.take_more is not None
        comm, numel = context.comm, sparse.numel
        leader = context.step % comm.world_size
        row = sparse.indices.new_zeros(context.capacity)
        if comm.rank == leader:
            row[: sparse.kept] = sparse.indices
        indices = torch.unique((yield comm.broadcast(row, leader)))  # ascending, the same on every worker

        values = context.take_more(indices)  # out of this worker's residual
        places = torch.searchsorted(indices, sparse.indices).clamp_(max=indices.numel() - 1)
        chosen = indices[places] == sparse.indices
        values[places[chosen]] += sparse.values[chosen]
        spoilt = (0 * sparse.values).sum()[None]  # NaN where this worker has an infinity or NaN anywhere
        sums = yield comm.all_reduce(torch.cat([values, spoilt]))

        out = yield None  # from here on nothing may be sent
        out.zero_()
        out[indices] = sums[:-1] / comm.world_size + sums[-1]
        rest = SparseGradient(sparse.indices[~chosen], sparse.values[~chosen], numel)
        yield Outcome(torch.isfinite(out).all(), rejected=rest)


def main() -> None:
    """Train with it and with all-gather, and say what each sent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    chosen = parser.parse_args()

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    task = torch.randn(64, 8, generator=torch.Generator().manual_seed(7))
    for collective in (AllGather(), TakeTurns()):
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 8)))
        compression = gaussiank.compress(model, 0.02, collective=collective)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        draw = torch.Generator().manual_seed(1 + rank)
        for _ in range(chosen.steps):
            inputs = torch.randn(32, 64, generator=draw)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), torch.tanh(inputs @ task))
            loss.backward()
            optimizer.step()
        if rank == 0:
            name, sent_bytes = type(collective).__name__, compression.metrics.sent_bytes
            print(f"{name}: loss {float(loss.detach()):.4f}, {sent_bytes} bytes in the last step")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
