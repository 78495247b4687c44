"""Stop a run and go on, on another number of workers too: residuals are saved beside model and optimizer.

torchrun --nproc-per-node 2 examples/resume.py --folder /tmp/mine --steps 100
torchrun --nproc-per-node 1 examples/resume.py --folder /tmp/mine --steps 200     # goes on at step 100
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank


def owed(model: DistributedDataParallel, compression: gaussiank.Compression) -> float:
    """Return the sum of all residuals, divided by the number of workers: what is still to enter the mean."""
    names = [name for name, _ in model.module.named_parameters()]
    waits = compression.feedback.residuals(names).sum(dtype=torch.float64)
    dist.all_reduce(waits)
    return float(waits) / dist.get_world_size()


def main() -> None:
    """Train from where the folder says, save, and say how much waits in the residuals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="that all workers see")
    parser.add_argument("--steps", type=int, default=100)
    chosen = parser.parse_args()

    dist.init_process_group("gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 8)))
    compression = gaussiank.compress(model, 0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    first, file = 0, chosen.folder / "model.pt"
    if file.is_file():
        saved = torch.load(file, weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        compression.load(chosen.folder / "residuals")  # on every worker; shared out anew if their number has changed
        first = saved["step"]
        waits = owed(model, compression)
        if rank == 0:
            print(f"{workers} workers go on at step {first}, {waits:.6f} owed")

    task = torch.randn(64, 8, generator=torch.Generator().manual_seed(7))
    for step in range(first, chosen.steps):
        inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(1000 * step + rank))
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), torch.tanh(inputs @ task))
        loss.backward()
        optimizer.step()

    compression.save(chosen.folder / "residuals")  # on every worker
    waits = owed(model, compression)
    if rank == 0:
        state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": chosen.steps}
        torch.save(state, file)
        print(f"{workers} workers, steps {first} to {chosen.steps}: loss {float(loss.detach()):.4f}, {waits:.6f} owed")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
