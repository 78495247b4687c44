"""``gaussiank bench`` as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.each import each

from gaussiank_lab.bench.rows import read_rows
from gaussiank_lab.cli import main

BENCH = [sys.executable, "-m", "gaussiank", "bench", "ops"]
ENV = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *arguments], capture_output=True, text=True, timeout=200, env=ENV, check=False)


def test_quick_run_measures_everything(tmp_path: Path) -> None:
    out = tmp_path / "bench"
    few = ["--laws", "residual", "--densities", "0.01", "--backends", "reference", "--threads", "1"]
    done = run("--quick", *few, "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = read_rows(out)
    assert {row["numel"] for row in rows} == {10_000, 100_000}
    assert {row["law"] for row in rows} == {"residual"}
    assert {"published Gaussian_k", "topk", "chunktopk", "numpy.argpartition"} < {row["operator"] for row in rows}
    assert (out / "operator_time.png").is_file()
    assert max(len(line) for line in done.stdout.splitlines() if not line.startswith("Wrote")) <= 80


def test_quick_check_prints_every_promise(tmp_path: Path) -> None:
    done = run("--check", "--quick", "--out", str(tmp_path))
    assert done.returncode in (0, 1), done.stderr
    rows = read_rows(tmp_path)
    below = [row["key"] for row in rows if row["verdict"] == "BELOW FLOOR"]
    assert done.returncode == bool(below)
    assert done.stdout.count("BELOW FLOOR") == len(below)


@each(
    ("arguments", "sentence"),
    [
        (["--sizes", "1e5,many"], "sizes must be whole numbers separated by commas, got 'many'. Correct it."),
        (["--sizes", "nan"], "sizes must be whole numbers separated by commas, got 'nan'. Correct it."),
        (["--sizes", "10"], "sizes must be in [1000, 2147483647], got 10."),
        (["--densities", "2"], "densities must be in (0, 1], got 2.0."),
        (["--operators", "best"], "operators must be among topk, "),
        (["--repeats", "0"], "repeats must be at least 1, got 0."),
        (["--laws", ""], "laws must name at least one, got none. Leave the option out for all."),
        (["--check", "--threads", "2"], "check must come without threads: the targets are fixed. Leave them out."),
    ],
)
def test_bad_input_gets_one_sentence_and_writes_nothing(
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "bench"
    monkeypatch.setattr(sys, "argv", ["gaussiank", "bench", "ops", *arguments, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"gaussiank: {sentence}")
    assert shown.err.count("\n") == 1
    assert not shown.out
    assert not out.exists()


@pytest.fixture
def heard() -> Iterator[None]:
    """Let processes hear Ctrl-C: a shell starts what runs in the background with it ignored, and all inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
@pytest.mark.usefixtures("heard")
def test_ctrl_c_keeps_the_rows(tmp_path: Path) -> None:
    command = [*BENCH, "--sizes", "1e3", "--laws", "normal,uniform", "--repeats", "100000", "--budget-s", "1e9"]
    command += ["--densities", "0.5", "--operators", "torch.topk", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + 120
        while not (tmp_path / "rows.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        shown, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "settings were measured and are kept." in shown
    assert "Traceback" not in errors
    assert read_rows(tmp_path) == []
