"""What holds for the options of every command: numbers, places to write, and a reader who goes away."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gaussiank_lab.cli import app, main
from gaussiank_lab.outputs import new_folder, require_file, require_folder
from gaussiank_lab.report.page import write_figures, write_report
from gaussiank_lab.report.records import RecordWriter
from gaussiank_lab.train.config import TrainConfig

from .conftest import run_record

ADVISE = ["advise", "--preset", "1gbe-workstations", "--model", "resnet50"]
GAUSSIANK = [sys.executable, "-m", "gaussiank"]


def said(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["gaussiank", *arguments])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    return capfd.readouterr().err


def test_numbers_are_finite_and_not_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text('{"lr": Infinity}')
    for arguments, sentence in (
        (["train", "--timeout-s", "inf"], "timeout_s must be a finite number, got inf."),
        (["train", "--timeout-s", "1e300"], "timeout_s must be at most 3.4e+38, got 1e+300."),
        (["train", "--timeout-s", "1e9"], "timeout_s must be at most 31,536,000, got 1,000,000,000.0."),
        (["train", "--seed", str(2**64)], "seed must be at most 9,007,199,254,740,992, got 18446744073709551616."),
        (["train", "--seed", str(2**32)], "seed must be at most 4,294,967,295, got 4,294,967,296."),
        (["train", "--lr", "inf"], "lr must be a finite number, got inf."),
        (["train", "--config", "config.json"], "lr must be a finite number, got inf."),
        (["train", "--weight-decay", "nan"], "weight_decay must be a finite number, got nan."),
        ([*ADVISE, "--gbit", "inf"], "gbit must be a finite number, got inf."),
        (["simulate", "--price", "inf"], "price must be a finite number, got inf."),
        (["bench", "ops", "--budget-s", "nan"], "budget_s must be a finite number, got nan."),
        (["train", "--out", ""], "out must be a path, got an empty one."),
    ):
        assert said(arguments, monkeypatch, capfd).startswith(f"gaussiank: {sentence}"), arguments
    assert TrainConfig(seed=2**32 - 1, timeout_s=365 * 86_400).seed == 2**32 - 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_where_nothing_can_be_written_no_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("dangling").symlink_to("nowhere")
    folder = "must be a folder that can be written, got"
    for arguments, sentence in (
        (["train", "--out", "file"], f"out {folder} file, which is a file."),
        (["train", "--out", "file/under/it"], f"out {folder} {tmp_path}/file, which is a file."),
        (["train", "--out", "dangling"], f"out {folder} dangling, which is a link to nothing."),
        (["train", "--out", "/proc/run"], f"out {folder} /proc: "),
        (["train", "--checkpoint-every", "1", "--checkpoint-dir", "file"], f"checkpoint_dir {folder} file"),
        (["report", "run", "--figures", "file"], f"figures {folder} file"),
        (["report", "run", "--out", "."], "out must be a file, got ., which is a folder."),
        (["probe", "--out", "file/probe.json"], f"out {folder} file"),
        ([*ADVISE, "--apply", "file/c.json"], f"apply {folder} file"),
        (["simulate", "--out", "file"], f"out {folder} file"),
        (["bench", "ops", "--out", "file"], f"out {folder} file"),
        (["bench", "net", "--out", "file"], f"out {folder} file"),
        (["reproduce", "--pages", "file"], f"pages {folder} file"),
    ):
        assert said(arguments, monkeypatch, capfd).startswith(f"gaussiank: {sentence}"), arguments
    require_folder(tmp_path / "new" / "deep")
    require_folder(Path())
    require_file(Path("new.html"))
    require_file(Path("file"))
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]  # noqa: PTH208  nothing was left behind


def test_every_command_says_where_it_writes() -> None:
    """An option that names a place to write is checked by the command line, or this list knows why not."""
    read = {"config", "data_dir", "resume", "probe", "run_dir", "run_dirs", "rows", "run"}
    commands = list(app.registered_commands)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        commands += group.typer_instance.registered_commands
    assert len(commands) == 14
    for command in commands:
        function = command.callback
        assert function is not None
        places = {name for name, kind in function.__annotations__.items() if "Path" in str(kind)} - read
        assert places == set(function.writes), function.__name__  # type: ignore[attr-defined]


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    names = [new_folder(tmp_path / "runs" / "lenet5-1").name for _ in range(3)]
    assert names == ["lenet5-1", "lenet5-1-2", "lenet5-1-3"]


def test_output_that_nobody_reads_does_not_end_a_command() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*GAUSSIANK, *ADVISE], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    with open("/dev/full", "w") as full:  # noqa: PTH123  a device
        done = subprocess.run([*GAUSSIANK, *ADVISE], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "gaussiank: standard output must be writable, got: No space left on device. Give another one.\n"
    )


def test_a_disk_that_fills_names_the_file(tmp_path: Path) -> None:
    with RecordWriter(tmp_path) as writer:
        writer.write(run_record())
    figures = tmp_path / "figures"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        works: list[tuple[Any, str]] = [
            (lambda: write_report(tmp_path), "report.html"),
            (lambda: write_figures(tmp_path, figures), ".svg"),
            (lambda: fill(tmp_path / "other"), "other/records.jsonl"),
        ]
        for work, name in works:
            with pytest.raises(OSError, match=r"^\[Errno 27\] File too large: ") as caught:
                work()
            assert str(caught.value.filename).endswith(name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def fill(run_dir: Path) -> None:
    with RecordWriter(run_dir) as writer:
        for _ in range(3):
            writer.write({"kind": "note", "text": 1000 * "x"})
