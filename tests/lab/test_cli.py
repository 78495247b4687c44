"""The command line as a user runs it: real processes, real training, on a model of 200,000 parameters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.each import each
from typer.testing import CliRunner

from gaussiank.codec import Wire
from gaussiank_lab.cli import app, main
from gaussiank_lab.report.records import Records, read_records

GAUSSIANK = [sys.executable, "-m", "gaussiank"]
TRAIN = ["train", "--model", "fnn3", "--steps", "12", "--batch-size", "16", "--density", "0.01"]


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    plain = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=plain, check=False)


def numbers(records: Records) -> list[dict[str, Any]]:
    """Everything but the times, which no seed can fix."""
    kept = [*records.steps, *records.evals, *records.methods]
    return [
        {key: value for key, value in record.items() if key != "seconds" and not key.endswith("_s")} for record in kept
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("runs") / "first"
    methods = "dense,topk,gaussiank,randomk:feedback=false"
    done = run(*GAUSSIANK, *TRAIN, "--workers", "2", "--methods", methods, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_train_compares_methods(trained: tuple[Path, str]) -> None:
    out, printed = trained
    records = read_records(out)
    assert [record["method"] for record in records.methods] == ["dense", "topk", "gaussiank", "randomk:feedback=false"]
    assert [len([step for step in records.steps if step["method"] == name]) for name in records.names] == [12] * 4
    dense, topk, _, randomk = records.methods
    assert dense["sent_bytes"] == dense["dense_bytes"] == 4 * 199_210  # 2 (P - 1) / P of the gradient, P = 2
    # one peer: 1 % of the entries, at one byte and a half to four
    assert 1.5 * 1_992 < topk["sent_bytes"] <= Wire("rice", "bf16").max_bytes(1_992, 199_210) + 8
    assert topk["kept_over_k"] == randomk["kept_over_k"] == 1.0
    assert topk["loss"] < randomk["loss"]
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    table = printed[: printed.index("Report:")]
    assert all(name in table for name in ("dense", "topk", "gaussiank", "randomk:"))
    assert max(map(len, table.splitlines())) <= 80
    assert f"Report: {out / 'report.html'}" in printed


def test_time_of_a_step_is_split_without_rest(trained: tuple[Path, str]) -> None:
    for step in read_records(trained[0]).steps:
        parts = [step[key] for key in ("compute_s", "select_s", "communicate_s")]
        repeated = step["method"] == "dense" and step["step"] > 1  # it looks at no residual and selects nothing
        assert (min(parts) > 0, parts[1] == 0) == (not repeated, repeated)
        assert min(parts[0], parts[2]) > 0
        assert sum(parts) == pytest.approx(step["step_s"])


def test_torchrun_with_the_same_seed_gives_the_same_numbers(trained: tuple[Path, str], tmp_path: Path) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "gaussiank",
    ]
    # its settings given back are the run again; only where it writes is said anew
    done = run(*torchrun, "train", "--config", str(trained[0] / "config.json"), "--out", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
    assert numbers(read_records(tmp_path / "again")) == numbers(read_records(trained[0]))
    assert (tmp_path / "again" / "config.json").read_bytes() == (trained[0] / "config.json").read_bytes()


def test_report_is_written_anew(trained: tuple[Path, str]) -> None:
    out, _ = trained
    (out / "report.html").unlink()
    done = run(*GAUSSIANK, "report", str(out))
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").exists()


def test_records_are_not_overwritten(trained: tuple[Path, str]) -> None:
    out, _ = trained
    before = (out / "records.jsonl").read_bytes()
    done = run(*GAUSSIANK, *TRAIN, "--workers", "2", "--out", str(out))
    assert done.returncode == 2
    assert done.stderr == f"gaussiank: out must be a directory without records, got {out}. Choose another one.\n"
    assert (out / "records.jsonl").read_bytes() == before


@each(
    ("arguments", "sentence"),
    [
        (["--density", "0"], "density must be in (0, 1], got 0.0. Give the share of entries to send, such as 0.001."),
        (
            ["--methods", "topkk"],
            "compressor must be one of dense, topk, gaussiank, dgc, trimmedtopk, mstopk, sidco, chunktopk, randomk, "
            "got 'topkk'.",
        ),
        (["--model", "gpt9"], "model must be one of fnn3, lenet5, resnet20, vgg16, alexnet, vgg16-imagenet, resnet50,"),
        (["--dataset", "mnist"], "data_dir must hold mnist, got no folder (--data-dir was not given) without train-im"),
        (["--batch-size", "9000", "--workers", "2"], "batch_size must be in [1, 5000] for 10000 images on 2 workers"),
        (
            ["--collective", "gossip"],
            "collective must be one of dense, allgather, split, leader, tree, hierarchical, auto",
        ),
        (["--device", "cuda"], "device must be cpu where torch sees no CUDA, got 'cuda'."),
    ],
)
def test_bad_input_gets_one_sentence_and_writes_nothing(
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["gaussiank", "train", *arguments, "--out", str(out)])
    with pytest.raises(SystemExit, match=r"^2$"):  # in this process, for one of its own starts for four seconds
        main()
    said = capfd.readouterr().err
    assert said.startswith(f"gaussiank: {sentence}")
    assert said.count("\n") == 1
    assert not out.exists()


@each("arguments", [["--help"], ["bench", "--help"]])
def test_no_description_is_cut_short(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert "..." not in done.stdout.partition("Commands:")[2]
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_workers_are_torchruns_business_under_torchrun() -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "gaussiank",
    ]
    done = run(*torchrun, *TRAIN, "--workers", "3")
    assert done.returncode != 0
    sentence = "workers must be left out under torchrun, got 3 where torchrun has 2. Leave it out."
    assert f"gaussiank: {sentence}" in done.stderr
    assert f"traceback : {sentence}" == done.stderr.rstrip("= \n").splitlines()[-1].strip()  # torchrun's own last words


def test_data_are_listed() -> None:
    done = run(*GAUSSIANK, "data")
    assert done.returncode == 0, done.stderr
    assert "  here     fashion-mnist-subset:" in done.stdout
    assert "  missing  cifar10:" in done.stdout


def test_help_and_version_are_quick_to_read() -> None:
    assert re.fullmatch(r"gaussiank \d+\.\d+\.\d+\n", run(*GAUSSIANK, "--version").stdout)
    shown = run(*GAUSSIANK, "--help").stdout
    assert "train" in shown
    assert "report" in shown
    script = "import sys; from gaussiank_lab.cli import app; assert 'torch' not in sys.modules"
    assert run(sys.executable, "-c", script).returncode == 0
