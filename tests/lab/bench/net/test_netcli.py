"""``gaussiank bench net`` as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.each import each

from gaussiank_lab.bench.rows import read_rows
from gaussiank_lab.cli import main

BENCH = [sys.executable, "-m", "gaussiank", "bench", "net"]
ENV = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}


@each(
    ("arguments", "sentence"),
    [
        (["--workers", "two"], "workers must be whole numbers separated by commas, got 'two'. Correct it."),
        (["--rates", "fast"], "rates must be loopback, unshaped, or from 1mbit to 100gbit, got 'fast'."),
        (["--methods", "best"], "methods must be ddp, ddp-fp16, "),
        (["--check", "--steps", "2"], "check must come without steps: the targets are fixed. Leave them out."),
        (["--check", "--quick"], "check must come without quick: the targets are fixed. Leave them out."),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gaussiank", "bench", "net", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert said.startswith(f"gaussiank: {sentence}")
    assert said.count("\n") == 1


def test_a_run_that_is_told_to_end_keeps_its_rows(tmp_path: Path) -> None:
    long = ["--models", "vector:1e4", "--rates", "loopback", "--workers", "1", "--rounds", "1", "--methods", "ddp"]
    forever = [*long[:1], "vector:1e4,vector:2e4", *long[2:], "--steps", "1000000", "--budget-s", "1000"]
    command = [*BENCH, *forever, "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENV, text=True) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == "Measuring 1 methods in 2 settings.\n"
        finally:
            run.send_signal(signal.SIGTERM)
            run.communicate()  # a pipe that is closed ahead of the run ends it otherwise
    assert run.returncode == 128 + signal.SIGTERM
    assert read_rows(tmp_path) == []


def test_a_quick_run_writes_rows_and_plots(tmp_path: Path) -> None:
    few = ["--models", "vector:1e4", "--rates", "loopback", "--methods", "ddp,topk,paper-topk"]
    done = subprocess.run(
        [*BENCH, "--quick", *few, "--out", str(tmp_path)], capture_output=True, text=True, env=ENV, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [row["method"] for row in read_rows(tmp_path)] == ["ddp", "topk", "paper-topk"]
    assert "vector:1e4, 2 workers, loopback, density 0.001" in done.stdout
    assert (tmp_path / "net_vector-1e4_2.svg").is_file()
