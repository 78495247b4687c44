"""What does a step cost that compresses nothing: plain DDP, its own Python hook, ours, and `auto` that takes dense?

All models train in the same processes, ten steps of each in turn, on the same batches. Printed are the median of each
one's ratios to plain DDP's step, round by round, and a worker's processor time. Plain DDP is there twice: the second
tells how far such a ratio can be trusted. `auto` with a given link always takes dense, without looks and trials.

    python benchmarks/dense_hooks.py --model lenet5 --workers 4 --rounds 200
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import gaussiank
from gaussiank_lab.data import DATASETS, Batches, Wanted
from gaussiank_lab.launch import launch
from gaussiank_lab.models import MODELS

NAMES = ("ddp", "ddp again", "ddp's python hook", "dense", "auto of a given link", "auto")
GIVEN = "auto:mbit=1e6:message_us=1e9"
WARMUP_ROUNDS, STEPS = 4, 10


def measure(model_name: str, rounds: int, batch_size: int, out: str) -> None:
    spec, rank, world_size = MODELS[model_name], dist.get_rank(), dist.get_world_size()
    models = [DistributedDataParallel(spec.build(10)) for _ in NAMES]
    models[2].register_comm_hook(None, default_hooks.allreduce_hook)
    gaussiank.compress(models[3], compressor="dense")
    gaussiank.compress(models[4], collective=GIVEN)
    compression = gaussiank.compress(models[5], collective="auto")
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    between = dist.new_group()
    train = DATASETS["fashion-mnist-subset"].load(Wanted(image=spec.image)).train
    drawn = Batches(train, batch_size, rank=rank, world_size=world_size, seed=0).epoch(0)
    batches: list[tuple[Tensor, Tensor]] = []
    for _ in range(STEPS):
        inputs, (labels,) = next(drawn)
        (prepared,) = train.prepare(inputs)
        batches.append((prepared, labels))
    times: list[list[tuple[float, float]]] = []
    for turn in range(WARMUP_ROUNDS + rounds):
        row = [(0.0, 0.0)] * len(NAMES)
        for place in range(len(NAMES)):
            i = (place + turn) % len(NAMES)
            dist.barrier(between)
            wall, cpu = time.perf_counter(), time.process_time()
            for prepared, labels in batches:
                optimizers[i].zero_grad()
                nn.functional.cross_entropy(models[i](prepared), labels).backward()
                optimizers[i].step()
            row[i] = ((time.perf_counter() - wall) / STEPS, (time.process_time() - cpu) / STEPS)
        times.append(row)
    if rank == 0:
        found = getattr(compression.collective, "finding", "")
        Path(out).write_text(json.dumps({"times": times[WARMUP_ROUNDS:], "auto": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=60, help="of ten steps of each")
    parser.add_argument("--batch-size", type=int, default=8, help="examples for each worker and step")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "times.json"
        launch(measure, arguments.workers, arguments.model, arguments.rounds, arguments.batch_size, str(out))
        answer = json.loads(out.read_text())
    for i, name in enumerate(NAMES):
        walls = [row[i][0] for row in answer["times"]]
        row = {
            "hook": name,
            "model": arguments.model,
            "workers": arguments.workers,
            "step_ms": round(1e3 * statistics.median(walls), 3),
            "cpu_ms": round(1e3 * statistics.median(row[i][1] for row in answer["times"]), 3),
            "over_ddp": round(statistics.median(row[i][0] / row[0][0] for row in answer["times"]), 4),
        }
        print(json.dumps(row | ({"found": answer["auto"]} if name == "auto" else {})), flush=True)


if __name__ == "__main__":
    main()
