"""A whole run on this worker: every method in turn, records and progress on rank 0, report at the end."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

import gaussiank
from gaussiank.collectives import require_agreement
from gaussiank.lab.config import TrainConfig
from gaussiank.lab.data import DATASETS, Batches
from gaussiank.lab.models import MODELS
from gaussiank.lab.progress import LiveProgress
from gaussiank.lab.records import RecordWriter, read_records
from gaussiank.lab.report import write_report
from gaussiank.lab.summary import summary_table
from gaussiank.lab.train import Training


def require_startable(config: TrainConfig) -> None:
    """Raise what every worker would raise, before any of them is started.

    Raises:
        ValueError: no such device, or a batch that does not fit the data.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be cpu where torch sees no CUDA, got {config.device!r}. Leave it out.")
    train, _ = DATASETS[config.dataset]()
    Batches(train, config.batch_size, rank=0, world_size=config.workers, seed=config.seed)


def run(config: TrainConfig, run_dir: Path, command: str) -> None:
    """Train with every method of ``config`` and write the run's directory; within a process group.

    Args:
        config: settings, the same on every worker.
        run_dir: where rank 0 writes ``records.jsonl`` and ``report.html``.
        command: command line that was given, for the records.

    Raises:
        ValueError: workers differ in their settings.
        FileExistsError: the directory holds records already.
    """
    require_agreement(config.as_record())
    data = DATASETS[config.dataset]()
    console = Console()
    with contextlib.ExitStack() as stack:
        writer = progress = None
        if dist.get_rank() == 0:
            writer = stack.enter_context(RecordWriter(run_dir))
            progress = stack.enter_context(LiveProgress(console))
            writer.write(_opening(config, command))

        def report(record: dict[str, Any]) -> None:
            if writer and progress:
                writer.write(record)
                progress.show(record)

        for method in config.methods:
            training = Training(config, method, data, report)
            if progress:
                progress.begin(method, training.steps)
            training.run()
    if dist.get_rank() == 0:
        console.print(summary_table(read_records(run_dir)))
        console.print(f"Report: {write_report(run_dir)}", soft_wrap=True, highlight=False)


def _opening(config: TrainConfig, command: str) -> dict[str, Any]:
    spec = MODELS[config.model]
    return {
        "kind": "run",
        "format": 1,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gaussiank": gaussiank.__version__,
        "torch": str(torch.__version__),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads_per_worker": torch.get_num_threads(),
            "python": platform.python_version(),
            "system": platform.system(),
            "backend": dist.get_backend(),
        },
        "config": config.as_record(),
        "model": {"name": spec.name, "numel": spec.numel},
        "command": command,
    }


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
