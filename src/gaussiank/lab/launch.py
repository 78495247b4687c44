"""Starts the workers: local processes of our own by torch's elastic launcher, or the torchrun job we are in."""

from __future__ import annotations

import datetime
import os
import uuid
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

GROUP_TIMEOUT_S = 120
"""A collective that hangs longer ends the run; torch's own default is 30 minutes."""


def under_torchrun() -> bool:
    """Tell whether this process is a worker that torchrun (or another launcher of its kind) has started."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def launch(work: Callable[..., None], workers: int, *arguments: Any) -> None:
    """Run ``work(*arguments)`` on every worker, within a process group.

    Args:
        work: a module's own function, so that a new process can import it.
        workers: how many processes to start here; under torchrun this one joins instead.
        *arguments: passed on; must be picklable.

    Raises:
        RuntimeError: a worker failed; names the rank and its error. The other workers have been ended.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if under_torchrun():
        record(_within_group)(work, arguments)  # leaves the error where torchrun looks for it
        return

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=workers,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, _within_group)(work, arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message: Any = failure.message  # torch annotates str, and gives a dict when the worker left its error behind
        text = message["message"] if isinstance(message, dict) else message
        last_line = str(text).strip().splitlines()[-1]
        raise RuntimeError(f"worker {rank} failed and the others were ended: {last_line}") from error


def _within_group(work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    workers_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers_here))
    backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=GROUP_TIMEOUT_S))
    work(*arguments)
    dist.destroy_process_group()  # not after an error: peers would report the lost connection before its cause


def world_size(wanted: int | None, usual: int | None = None) -> int:
    """Return the number of workers: what torchrun says when it has started us, else what is wanted, usual, or 4.

    Raises:
        ValueError: torchrun has another number than is wanted.
    """
    if not under_torchrun():
        return next(number for number in (wanted, usual, 4) if number is not None)
    given = int(os.environ["WORLD_SIZE"])
    if wanted not in (None, given):
        raise ValueError(
            f"workers must be left out under torchrun, got {wanted} where torchrun has {given}. Leave it out."
        )
    return given
