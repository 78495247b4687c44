"""What does the hook cost when it compresses nothing? Density 1 against DDP's own all-reduce hook.

Both models train in the same processes, a step of one and a step of the other in turn, on the same batches. The figure
is the ratio of their step times, pair by pair; ``--check`` fails when its median is 1.05 or more. A step of 3 ms varies
by half of itself on two cores, so thousands of pairs are needed before the median stands still.

    python benchmarks/hook_overhead.py --check
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import gaussiank
from gaussiank_lab.data import DATASETS, Batches, Wanted
from gaussiank_lab.launch import launch
from gaussiank_lab.models import MODELS

TARGET = 1.05
WARMUP_STEPS = 10


def measure(model_name: str, steps: int, batch_size: int, out: str) -> None:
    spec = MODELS[model_name]
    models = [DistributedDataParallel(spec.build(10)) for _ in range(2)]
    models[0].register_comm_hook(None, default_hooks.allreduce_hook)
    between = dist.new_group()  # a barrier on a group of either model would warm up that model's own connections
    gaussiank.compress(models[1], density=1.0)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    train = DATASETS["fashion-mnist-subset"].load(Wanted(image=spec.image)).train
    batches = Batches(train, batch_size, rank=dist.get_rank(), world_size=dist.get_world_size(), seed=0)
    times: list[tuple[float, float]] = []
    epoch = 0
    while len(times) < steps + WARMUP_STEPS:
        for inputs, (labels,) in batches.epoch(epoch):
            (prepared,) = train.prepare(inputs)
            pair = [0.0, 0.0]
            for i in (0, 1) if len(times) % 2 else (1, 0):
                dist.barrier(between)
                started = time.perf_counter()
                optimizers[i].zero_grad()
                nn.functional.cross_entropy(models[i](prepared), labels).backward()
                optimizers[i].step()
                pair[i] = time.perf_counter() - started
            times.append((pair[0], pair[1]))
            if len(times) == steps + WARMUP_STEPS:
                break
        epoch += 1
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(times[WARMUP_STEPS:]))


def median_interval(ratios: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median: the order statistics 0.98 sqrt(n) ranks from the middle."""
    ordered, reach = sorted(ratios), math.ceil(0.98 * math.sqrt(len(ratios)))
    middle = len(ratios) // 2
    return round(ordered[max(0, middle - reach)], 4), round(ordered[min(len(ratios) - 1, middle + reach)], 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="fnn3:4000,lenet5:2000,resnet20:150", help="name:pairs of steps, by comma")
    parser.add_argument("--workers", default="2,4", help="by comma")
    parser.add_argument("--batch-size", type=int, default=32, help="images for each worker and step")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 when a median ratio is {TARGET} or more")
    arguments = parser.parse_args()
    failed = False
    for model, steps in (entry.split(":") for entry in arguments.models.split(",")):
        for workers in map(int, arguments.workers.split(",")):
            with tempfile.TemporaryDirectory() as place:
                out = str(Path(place) / "times.json")
                launch(measure, workers, model, int(steps), arguments.batch_size, out)
                pairs = json.loads(Path(out).read_text())
            ratios = [ours / theirs for theirs, ours in pairs]
            low, median, high = statistics.quantiles(ratios, n=4)
            row = {
                "question": "hook_overhead",
                "model": model,
                "workers": workers,
                "ddp_step_ms": round(1e3 * statistics.median(theirs for theirs, _ in pairs), 3),
                "ours_step_ms": round(1e3 * statistics.median(ours for _, ours in pairs), 3),
                "ratio_of_medians": round(
                    statistics.median(ours for _, ours in pairs) / statistics.median(theirs for theirs, _ in pairs), 4
                ),
                "ratio_median": round(median, 4),
                "ratio_95_percent": median_interval(ratios),
                "ratio_quartiles": [round(low, 4), round(high, 4)],
            }
            print(json.dumps(row), flush=True)
            failed = failed or median >= TARGET
    return 1 if arguments.check and failed else 0


if __name__ == "__main__":
    sys.exit(main())
