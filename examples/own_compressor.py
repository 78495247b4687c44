"""A compressor of your own: whole runs of neighbours, those of the largest norm. One class, given to ``compress``.

    torchrun --nproc-per-node 2 examples/own_compressor.py

What it does not choose stays in the residual, as with every compressor. What runs cost in bits and loss, it prints.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank
from gaussiank.compressors import Compressor, SelectContext, Selection


@dataclass(frozen=True)
class Runs(Compressor):
    """Choose runs of ``length`` neighbours by their norm, k entries in all or as many runs as fit into k."""

    length: int = 8

    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        """Return int32 indices, ascending and without repeats, at most ``capacity(k, numel)`` of them."""
        numel = accumulated.numel()
        padded = nn.functional.pad(accumulated, (0, -numel % self.length))
        norms = padded.view(-1, self.length).square().sum(dim=1)
        runs = norms.topk(max(1, k // self.length)).indices.sort().values
        places = (runs[:, None] * self.length + torch.arange(self.length, device=runs.device)).flatten()
        return Selection(places[places < numel].int())

    def capacity(self, k: int, numel: int) -> int:
        """Return the most that ``select`` returns: one run at least."""
        return min(numel, max(self.length, k))


def main() -> None:
    """Train with it and with Top_k, and say what each sent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    chosen = parser.parse_args()

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    task = torch.randn(64, 8, generator=torch.Generator().manual_seed(7))
    for compressor in (gaussiank.TopK(), Runs(), Runs(length=32)):
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 8)))
        compression = gaussiank.compress(model, 0.02, compressor=compressor)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        draw = torch.Generator().manual_seed(1 + rank)
        for _ in range(chosen.steps):
            inputs = torch.randn(32, 64, generator=draw)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), torch.tanh(inputs @ task))
            loss.backward()
            optimizer.step()
        if rank == 0:
            metrics = compression.metrics
            print(f"{compressor}: loss {float(loss.detach()):.4f}, {metrics.kept} of {metrics.numel} entries, "
                  f"{8 * metrics.sent_bytes / metrics.kept:.1f} bits each")  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
