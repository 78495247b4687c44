"""Train a small network with DDP, with sparse exchanges. What differs from plain DDP is marked with a star.

    torchrun --nproc-per-node 2 examples/ddp.py
    torchrun --nproc-per-node 2 examples/ddp.py --density 1     # dense, to compare

The task: images of noise, in which a pattern of one of ten classes is hidden.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank  # *

PATTERNS = torch.randn(10, 784, generator=torch.Generator().manual_seed(0))


def batch_of(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images ``[count, 784]`` and their classes."""
    classes = torch.randint(10, (count,), generator=draw)
    return 0.2 * PATTERNS[classes] + torch.randn(count, 784, generator=draw), classes


def main() -> None:
    """Train, and say what was sent and how well it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--steps", type=int, default=300)
    chosen = parser.parse_args()

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10)))
    compression = gaussiank.compress(model, chosen.density)  # *
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    draw = torch.Generator().manual_seed(1 + rank)  # every worker has data of its own
    sent_bytes = dense_bytes = 0
    for _ in range(chosen.steps):
        images, classes = batch_of(32, draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), classes).backward()
        optimizer.step()
        sent_bytes += compression.metrics.sent_bytes
        dense_bytes += compression.metrics.dense_bytes

    images, classes = batch_of(2000, torch.Generator().manual_seed(-1))
    with torch.no_grad():
        right = (model.module(images).argmax(dim=1) == classes).float().mean()
    if rank == 0:
        print(f"accuracy {100 * float(right):.1f} %; sent {sent_bytes / 1e6:.2f} MB a worker, "
              f"dense {dense_bytes / 1e6:.2f} MB")  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
