"""What does AdamRows cost? Steps of our transformer with it against the same without, two workers on one machine.

Both models train in the same processes, a step of one and a step of the other in turn, on the same tokens. The figure
is the ratio of their step times, pair by pair; ``--check`` fails when its median is above 1.05.

    python benchmarks/precondition_cost.py --check
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank
from gaussiank_lab.launch import launch
from gaussiank_lab.models import MODELS

TARGET, WARMUP_STEPS, VOCABULARY, CONTEXT = 1.05, 5, 256, 128
SPARSE: dict[str, Any] = {"density": 1 / 64, "scope": "layer", "wire": "rice+2bit"}


def measure(steps: int, batch_size: int, out: str) -> None:
    """Time pairs of steps; rank 0 writes them."""
    models = [DistributedDataParallel(MODELS["transformer"].build(VOCABULARY)) for _ in range(2)]
    gaussiank.compress(models[0], **SPARSE)
    gaussiank.compress(models[1], **SPARSE, precondition=gaussiank.AdamRows())
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-3) for model in models]
    between = dist.new_group()  # a barrier on a group of either model would warm up that model's own connections
    times: list[list[float]] = []
    for step in range(steps + WARMUP_STEPS):
        tokens = torch.randint(VOCABULARY, (batch_size, CONTEXT + 1))
        pair = [0.0, 0.0]
        for i in (0, 1) if step % 2 else (1, 0):
            dist.barrier(between)
            began = time.perf_counter()
            optimizers[i].zero_grad()
            guess = models[i](tokens[:, :-1])
            nn.functional.cross_entropy(guess.flatten(0, 1), tokens[:, 1:].flatten()).backward()
            optimizers[i].step()
            pair[i] = time.perf_counter() - began
        times.append(pair)
    if dist.get_rank() == 0:
        torch.save(torch.tensor(times[WARMUP_STEPS:]), out)


def main() -> None:
    """Run both, and print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="pairs of steps")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences of 128 tokens a worker and step")
    parser.add_argument("--check", action="store_true", help=f"end with status 1 above {TARGET}")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "times.pt")
        launch(measure, 2, chosen.steps, chosen.batch_size, out)
        times = torch.load(out)
    ratios = (times[:, 1] / times[:, 0]).tolist()
    low, middle, high = statistics.quantiles(ratios, n=4)
    without, with_it = (1e3 * times.median(0).values).tolist()
    print("| batch | without AdamRows, ms a step | with | ratio, median of pairs | quartiles |")
    print("|---|---|---|---|---|")
    print(f"| {chosen.batch_size} | {without:.1f} | {with_it:.1f} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    sys.exit(1 if chosen.check and middle > TARGET else 0)


if __name__ == "__main__":
    main()
