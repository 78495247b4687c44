"""Mixed precision with a GradScaler, gradient accumulation and clipping, under DDP with sparse exchanges.

    torchrun --nproc-per-node 2 examples/amp.py

Three settings differ from a dense script, each marked with a star: the scaler is told to ``compress``, clipping happens
there too (after backward it would throw away what has waited), and ``no_sync`` keeps the micro-steps from exchanging.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank  # *


def main() -> None:
    """Train, and say what was skipped and what was sent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--accumulate", type=int, default=4, help="batches whose gradients are exchanged as one")
    chosen = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).to(device))
    scaler = torch.amp.GradScaler(device, init_scale=2.0**27, growth_interval=50)  # begins too large: steps are skipped
    compression = gaussiank.compress(model, chosen.density, scaler=scaler, clip_norm=1.0)  # *
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    draw = torch.Generator().manual_seed(1 + rank)
    losses, skipped = [], 0
    for _ in range(chosen.steps):
        optimizer.zero_grad()
        for micro in range(chosen.accumulate):
            inputs = torch.randn(16, 64, generator=draw).to(device)
            last = micro == chosen.accumulate - 1
            with nullcontext() if last else model.no_sync():  # * one exchange for all of them
                with torch.autocast(device, dtype=torch.float16):
                    loss = nn.functional.mse_loss(model(inputs), inputs.flip(1)) / chosen.accumulate
                scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)  # no clip_grad_norm_ here
        scaler.update()
        skipped += scaler.get_scale() < scale
        losses.append(chosen.accumulate * float(loss.detach()))

    if rank == 0:
        print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}; {skipped} steps were skipped and "
              f"changed no residual; {compression.metrics.kept} of {compression.metrics.numel} entries")  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
