"""How long does training stand still for a checkpoint, compared with a step? VGG-16, 14.7 million parameters.

    python benchmarks/checkpoint_cost.py --workers 2 --batch-size 32 --steps 8

Trains for a few steps with a checkpoint after each: model, momentum, and every worker's residuals, synced to disk.
Prints the size and the median times, and what one checkpoint in ``--every`` steps costs a step. Small batches make
steps short and the share large. Ends with status 1 when the share is above ``--limit``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Literal

from gaussiank_lab.checkpoint import CheckpointPlan
from gaussiank_lab.launch import launch
from gaussiank_lab.report.records import RECORDS_NAME
from gaussiank_lab.report.summary import bytes_text
from gaussiank_lab.train.config import TrainConfig, default
from gaussiank_lab.train.run import run


def measure(form: Literal["plain", "dcp"], arguments: argparse.Namespace) -> float:
    """Train with one form of checkpoints; returns and prints a checkpoint's share of a step."""
    config = TrainConfig(
        **{
            **default("vgg16"),
            "methods": ("topk",),
            "workers": arguments.workers,
            "batch_size": arguments.batch_size,
            "steps": arguments.steps,
            "eval_steps": 10**9,
            "timeout_s": 600.0,
        }
    )
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        run_dir = Path(folder, "run")
        plan = CheckpointPlan(run_dir / "checkpoints", every=1, keep=2, form=form)
        launch(run, config.workers, config, run_dir, "checkpoint_cost", plan)
        rows = [json.loads(line) for line in (run_dir / RECORDS_NAME).read_text().splitlines()]
    saved = [row for row in rows if row["kind"] == "checkpoint"]
    step_s = statistics.median(row["step_s"] for row in rows if row["kind"] == "step")
    seconds = statistics.median(row["seconds"] for row in saved)
    share: float = seconds / step_s / arguments.every
    print(
        f"{form}: {bytes_text(saved[-1]['size_bytes'])} from {config.workers} workers; checkpoint {seconds:.3f} s, "
        f"step {step_s:.3f} s (medians of {len(saved)}); one in {arguments.every} steps costs {share:.2%} of a step",
        flush=True,
    )
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32, help="images a worker and step (32; the paper has 128)")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints (100)")
    parser.add_argument("--limit", type=float, default=0.1, help="largest share of a step (0.1)")
    parser.add_argument("--dir", help="where to write; the default of this machine if not given")
    arguments = parser.parse_args()
    shares = [measure(form, arguments) for form in ("plain", "dcp")]
    sys.exit(max(shares) > arguments.limit)


if __name__ == "__main__":
    main()
