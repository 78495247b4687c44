from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from gaussiank.lab.launch import launch, world_size


def leave_rank(folder: str) -> None:
    Path(folder, str(dist.get_rank())).write_text(str(dist.get_world_size()))


def fail_on_one(folder: str) -> None:
    if dist.get_rank() == 1:
        raise ValueError("the disk is full")
    dist.barrier()  # waits for rank 1 for ever, unless the launcher ends it


def test_launch_runs_on_every_worker(tmp_path: Path) -> None:
    launch(leave_rank, 3, str(tmp_path))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"0": "3", "1": "3", "2": "3"}


def test_a_failing_worker_ends_the_others_and_is_named(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="worker 1 failed and the others were ended: ValueError: the disk is full"):
        launch(fail_on_one, 2, str(tmp_path))
    assert time.monotonic() - started < 60


def test_world_size_is_four_unless_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert (world_size(None), world_size(2), world_size(None, 3), world_size(2, 3)) == (4, 2, 3, 2)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "8"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert (world_size(None), world_size(8), world_size(None, 3)) == (8, 8, 8)
    assert "RANK" in os.environ
