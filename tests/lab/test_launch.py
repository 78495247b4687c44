from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from gaussiank_lab.launch import launch, leave, world_size


def leave_rank(folder: str) -> None:
    Path(folder, str(dist.get_rank())).write_text(str(dist.get_world_size()))
    dist.barrier()  # one that left at once would break off connections that others still make


def fail_on_one(folder: str) -> None:
    if dist.get_rank() == 1:
        raise ValueError("the disk is full")
    dist.barrier()  # waits for rank 1 for ever, unless the launcher ends it


def test_launch_runs_on_every_worker(tmp_path: Path) -> None:
    launch(leave_rank, 3, str(tmp_path))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"0": "3", "1": "3", "2": "3"}


@pytest.mark.usefixtures("fork_server")
def test_a_failing_worker_ends_the_others_and_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="worker 1 failed and the others were ended: ValueError: the disk is full"):
        launch(fail_on_one, 2, str(tmp_path))
    assert time.monotonic() - started < 60
    printed = capfd.readouterr().err
    assert printed.startswith("Traceback")
    assert printed.endswith("ValueError: the disk is full\n")  # and nothing of torch's


def fail_at_length() -> None:
    raise ValueError("the disk is full\n  at some_function(file.cpp:17)\n  return x\n")


def end_without_a_word() -> None:
    os._exit(3)


def test_the_last_line_says_why_and_quotes_no_source() -> None:
    for work, sentence in (
        (fail_at_length, "worker 0 failed and the others were ended: ValueError: the disk is full"),
        (end_without_a_word, "worker 0 failed and the others were ended: it left no message, and ended with status 3"),
    ):
        with pytest.raises(RuntimeError) as caught:
            launch(work, 1)
        assert str(caught.value) == sentence


def test_a_worker_leaves_a_sentence_for_the_launcher_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    leave("nobody reads it")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    leave("lr must be above 0")
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=1, error_file=str(tmp_path / "error.json"))
    assert "traceback : lr must be above 0\n" in ChildFailedError("train", {1: failure}).format_msg()
    assert [path.name for path in tmp_path.iterdir()] == ["error.json"]


def test_world_size_is_four_unless_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert (world_size(None), world_size(2), world_size(None, 3), world_size(2, 3)) == (4, 2, 3, 2)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "8"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert (world_size(None), world_size(8), world_size(None, 3)) == (8, 8, 8)
    assert "RANK" in os.environ
