"""A whole run on this worker: every method in turn, records and progress on rank 0, report at the end."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

import gaussiank
from gaussiank.collectives import require_agreement
from gaussiank.lab.config import TrainConfig
from gaussiank.lab.config_file import write_config
from gaussiank.lab.data import Batches, Data
from gaussiank.lab.progress import LiveProgress
from gaussiank.lab.records import RecordWriter, read_records
from gaussiank.lab.report import write_report
from gaussiank.lab.study.recorder import Recorder
from gaussiank.lab.summary import summary_table
from gaussiank.lab.train import Training


def require_startable(config: TrainConfig) -> None:
    """Raise what every worker would raise, before any of them is started.

    Raises:
        ValueError: no such device, a damaged file, or a batch that does not fit the data.
        FileNotFoundError: the data are not there.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be cpu where torch sees no CUDA, got {config.device!r}. Leave it out.")
    train = config.load_data().train
    Batches(train, config.batch_size, rank=0, world_size=config.workers, seed=config.seed)


def run(config: TrainConfig, run_dir: Path, command: str, record: Mapping[str, Any] | None = None) -> None:
    """Train with every method of ``config`` and write the run's directory; within a process group.

    Args:
        config: settings, the same on every worker.
        run_dir: where rank 0 writes ``records.jsonl``, ``config.json`` and ``report.html``.
        command: command line that was given, for the records.
        record: options of a ``Recorder`` for each method, which writes to ``study_dir``; None records no gradients.

    Raises:
        ValueError: workers differ in their settings.
        FileExistsError: the directory holds records already.
    """
    require_agreement(config.as_record())
    data = config.load_data()
    console = Console()
    with contextlib.ExitStack() as stack:
        writer = progress = None
        if dist.get_rank() == 0:
            writer = stack.enter_context(RecordWriter(run_dir))
            progress = stack.enter_context(LiveProgress(console, data.task.metric))
            write_config(run_dir, config)
            writer.write(_opening(config, data, command))

        def report(record: dict[str, Any]) -> None:
            if writer and progress:
                writer.write(record)
                progress.show(record)

        for method in config.methods:
            recorder = None if record is None else Recorder(study_dir(run_dir, method), **record)
            training = Training(config, method, data, report, recorder)
            if progress:
                progress.begin(method, training.steps)
            training.run()
            if recorder:
                recorder.close()
    if dist.get_rank() == 0:
        console.print(summary_table(read_records(run_dir)))
        console.print(f"Report: {write_report(run_dir)}", soft_wrap=True, highlight=False)


def study_dir(run_dir: Path, method: str) -> Path:
    """Return where the gradients of one method are recorded.

    Example:
        >>> study_dir(Path("runs/one"), "gaussiank:mode=published").as_posix()
        'runs/one/gaussiank-mode=published'
    """
    return run_dir / re.sub(r"[^A-Za-z0-9=._]+", "-", method)


def _opening(config: TrainConfig, data: Data, command: str) -> dict[str, Any]:
    return {
        "kind": "run",
        "format": 1,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gaussiank": gaussiank.__version__,
        "torch": str(torch.__version__),
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads_per_worker": torch.get_num_threads(),
            "python": platform.python_version(),
            "system": platform.system(),
            "backend": dist.get_backend(),
        },
        "config": config.as_record(),
        "model": {"name": config.model, "numel": config.spec.parameters(data.outputs)},
        "data": {"train": len(data.train), "test": len(data.test), "unit": data.train.unit, "digest": data.digest},
        "metric": data.task.metric.as_record(),
        "command": command,
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
