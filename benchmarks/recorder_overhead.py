"""What does recording cost? The same training with a recorder that samples every 50 steps, and without one.

Both models train in the same processes, a block of 50 steps of one and a block of the other in turn (each block holds
one sample), on the same batches. ``clock_ratio`` compares the times of blocks on the clock, pair by pair, and
``processor_ratio`` their processor times; both are noise on a busy machine. A sample is copied in the first step of a
block and written in the second: ``sample_ms`` is what those two take more than without a recorder, of medians over
blocks, ``every_step_ms`` what the median of all other steps takes more, and ``sample_ratio`` adds both up. ``--check``
fails when it is 1.02 or more.

    python benchmarks/recorder_overhead.py --check
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import gaussiank
from gaussiank_lab.data import Batches
from gaussiank_lab.launch import launch
from gaussiank_lab.study.recorder import Recorder
from gaussiank_lab.train.config import TrainConfig

TARGET = 1.02
EVERY = 50
SAMPLED = (0, 1)  # places of a block in which a sample is copied and written


def measure(model_name: str, blocks: int, batch_size: int, folder: str) -> None:
    config = TrainConfig(model=model_name)
    data = config.load_data()
    models = [DistributedDataParallel(config.spec.build(data.outputs)) for _ in range(2)]
    recorder = Recorder(Path(folder) / "study", every=EVERY)
    gaussiank.compress(models[0], density=0.001)
    gaussiank.compress(models[1], density=0.001, recorder=recorder)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    batches = Batches(data.train, batch_size, rank=dist.get_rank(), world_size=dist.get_world_size(), seed=0)
    batch = next(batches.epoch(0))
    prepared = data.train.prepare(batch.inputs)

    def block(which: int) -> tuple[float, list[float]]:
        dist.barrier()
        started, ticks = time.perf_counter(), [time.process_time()]
        for _ in range(EVERY):
            optimizers[which].zero_grad()
            data.task.loss(models[which](*prepared), batch.targets).backward()
            optimizers[which].step()
            ticks.append(time.process_time())
        return time.perf_counter() - started, [after - before for before, after in itertools.pairwise(ticks)]

    block(0), block(1)
    pairs = []
    for number in range(blocks):
        order = (0, 1) if number % 2 else (1, 0)
        found = {which: block(which) for which in order}
        pairs.append((*found[0], *found[1]))
    recorder.close()
    if dist.get_rank() == 0:
        Path(folder, "times.json").write_text(json.dumps(pairs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="fnn3,lenet5,resnet20", help="by comma")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=12, help="pairs of blocks of 50 steps")
    parser.add_argument("--batch-size", type=int, default=32, help="images for each worker and step")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 when a sample ratio is {TARGET} or more")
    arguments = parser.parse_args()
    failed = False
    for model in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            launch(measure, arguments.workers, model, arguments.blocks, arguments.batch_size, folder)
            pairs = json.loads(Path(folder, "times.json").read_text())
        clock = statistics.quantiles((recorded / bare for bare, _, recorded, _ in pairs), n=4)
        low, median, high = statistics.quantiles((sum(recorded) / sum(bare) for _, bare, _, recorded in pairs), n=4)
        bare, recorded = (
            list(zip(*(pair[at] for pair in pairs), strict=True)) for at in (1, 3)
        )  # by place in the block
        step_s = statistics.median(itertools.chain(*bare))
        sample_s = sum(statistics.median(recorded[at]) - statistics.median(bare[at]) for at in SAMPLED)
        rest_s = [statistics.median(itertools.chain(*places[len(SAMPLED) :])) for places in (bare, recorded)]
        ratio = 1 + (sample_s / EVERY + rest_s[1] - rest_s[0]) / step_s
        row = {
            "question": "recorder_overhead",
            "model": model,
            "workers": arguments.workers,
            "step_ms": round(1e3 / EVERY * statistics.median(bare for bare, _, _, _ in pairs), 3),
            "clock_ratio_median": round(clock[1], 4),
            "clock_ratio_quartiles": [round(clock[0], 4), round(clock[2], 4)],
            "processor_step_ms": round(1e3 * step_s, 3),
            "sample_ms": round(1e3 * sample_s, 3),
            "every_step_ms": round(1e3 * (rest_s[1] - rest_s[0]), 4),
            "sample_ratio": round(ratio, 4),
            "processor_ratio_median": round(median, 4),
            "processor_ratio_quartiles": [round(low, 4), round(high, 4)],
        }
        print(json.dumps(row), flush=True)
        failed = failed or ratio >= TARGET
    return 1 if arguments.check and failed else 0


if __name__ == "__main__":
    sys.exit(main())
