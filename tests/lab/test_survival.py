"""Runs of real processes that are killed, suspended, broken or cut off, and go on from their last checkpoint."""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from gaussiank_lab.checkpoint import CheckpointFolder, CheckpointPlan, find_resume
from gaussiank_lab.launch import launch, restarts
from gaussiank_lab.report.records import Records, read_records
from gaussiank_lab.train import run as lab_run
from gaussiank_lab.train import start as train_command
from gaussiank_lab.train.config import TrainConfig
from gaussiank_lab.train.run import run
from gaussiank_lab.train.start import Options
from gaussiank_lab.train.step import Stepper

CONFIG = TrainConfig(
    model="fnn3",
    methods=("topk", "gaussiank"),
    workers=2,
    steps=6,
    eval_steps=3,
    batch_size=8,
    density=0.01,
    momentum_correction=True,
    timeout_s=60,
)
RECORD = {"every": 3}
FAULTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": lambda: (_ for _ in ()).throw(ValueError("shapes do not match")),
    "full disk": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY)),
}


def quick_run(*arguments: Any) -> None:
    """Train, but draw no figures at the end."""
    lab_run._conclude = lambda run_dir: None
    run(*arguments)


def written_run(out: Path, *arguments: Any) -> None:
    """Train, and write what is printed to a file: the server that workers are forked from writes where it began to."""
    with out.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
    quick_run(*arguments)


def faulty_run(fault: str, number: int, rank: int, *arguments: Any) -> None:
    """Train, but let a rank meet a fault before its step of a number; after a restart it meets none."""
    take = Stepper.take
    taken = 0

    def broken(self: Stepper, *given: Any, **more: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == number and dist.get_rank() == rank and not restarts():
            FAULTS[fault]()
        return take(self, *given, **more)

    Stepper.take = broken  # type: ignore[method-assign]  # this process is the test's own
    quick_run(*arguments)


def plan(run_dir: Path) -> CheckpointPlan:
    return CheckpointPlan(run_dir / "checkpoints", every=2)


def start(run_dir: Path, fault: str, number: int, *, rank: int = 1, **options: Any) -> None:
    config = TrainConfig(**{**vars(CONFIG), "timeout_s": options.pop("timeout_s", CONFIG.timeout_s)})
    arguments = (fault, number, rank, config, run_dir, "test", plan(run_dir), None)
    launch(faulty_run, 2, *arguments, timeout_s=config.timeout_s, **options)


def go_on(run_dir: Path, workers: int = 2) -> None:
    config = TrainConfig(**{**vars(CONFIG), "workers": workers})
    launch(quick_run, workers, config, run_dir, "test", plan(run_dir), find_resume(run_dir))


def digests(run_dir: Path) -> dict[str, str]:
    return {record["method"]: record["digest"] for record in read_records(run_dir).methods}


def numbers(records: Records) -> list[dict[str, Any]]:
    kept = [*records.steps, *records.evals, *records.methods]
    return [{key: v for key, v in record.items() if key != "seconds" and not key.endswith("_s")} for record in kept]


def require_whole(run_dir: Path, names: list[str]) -> None:
    whole = CheckpointFolder(run_dir / "checkpoints").whole()
    assert [path.name for path in whole.values()] == names
    for path in whole.values():
        find_resume(path).require_whole()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recorded, which changes nothing: the runs that are held against it are not, but for one."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    launch(quick_run, 2, CONFIG, run_dir, "test", plan(run_dir), None, RECORD)
    return run_dir


def test_a_killed_worker_is_named_and_the_run_goes_on_in_the_middle_of_its_second_method(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(RuntimeError, match=r"^worker 1 failed and the others were ended: Signal 9 \(SIGKILL\)"):
        start(run_dir, "kill", 6 + 4)
    require_whole(run_dir, ["00-topk-step-00000004", "00-topk-step-00000006", "01-gaussiank-step-00000002"])
    go_on(run_dir)
    assert digests(run_dir) == digests(whole)
    assert numbers(read_records(run_dir)) == numbers(read_records(whole))


@pytest.mark.parametrize(
    ("rank", "named"), [(1, "from rank 1: it has"), (0, "from rank 0, or from the launcher, which keep the store")]
)
def test_a_suspended_worker_ends_the_run_in_time_and_is_named(tmp_path: Path, rank: int, named: str) -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=f"^the workers were ended: no sign of life {named}"):
        start(tmp_path / "run", "stop", 4, rank=rank, timeout_s=3)
    assert time.monotonic() - started < 90
    require_whole(tmp_path / "run", ["00-topk-step-00000002"])


def test_an_exception_in_the_model_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^worker 1 failed .*: ValueError: shapes do not match"):
        start(tmp_path / "run", "raise", 4)
    require_whole(tmp_path / "run", ["00-topk-step-00000002"])


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path: Path) -> None:
    sentence = r"checkpoint of step 4 must be written by every worker, got an error on rank 1: \[Errno 27\] File too la"
    with pytest.raises(RuntimeError, match=f"failed and the others were ended: RuntimeError: {sentence}"):
        start(tmp_path / "run", "full disk", 3)
    require_whole(tmp_path / "run", ["00-topk-step-00000002"])
    assert not list((tmp_path / "run" / "checkpoints").glob(".*-step-*"))


def test_workers_are_started_again_and_go_on_by_themselves(whole: Path, tmp_path: Path) -> None:
    start(tmp_path / "run", "kill", 4, max_restarts=1)
    assert digests(tmp_path / "run") == digests(whole)


def test_torchrun_starts_workers_again_and_they_go_on_by_themselves(whole: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal\n"
        "from gaussiank_lab.train import run\n"
        "from gaussiank_lab.cli import main\n"
        "from gaussiank_lab.train.step import Stepper\n"
        "take, taken = Stepper.take, []\n"
        "def broken(self, *given, **more):\n"
        "    taken.append(1)\n"
        "    if len(taken) == 4 and os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return take(self, *given, **more)\n"
        "Stepper.take = broken\n"
        "run._conclude = lambda run_dir: None\n"
        "main()\n"
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    options = ["--config", str(whole), "--checkpoint-every", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, *torchrun, str(script), "train", *options],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Resumed topk after step 2" in done.stdout
    assert digests(tmp_path / "run") == digests(whole)


def studied(run_dir: Path) -> dict[str, list[str]]:
    """Return what was recorded of each method's gradients, but for the opening, which has the time."""
    paths = sorted(run_dir.glob("*/gradients.jsonl"))
    return {path.parent.name: path.read_text().splitlines()[1:] for path in paths}


def test_a_finished_run_goes_on_to_more_steps_and_ends_as_a_longer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_command, "run", functools.partial(written_run, tmp_path / "printed"))
    settings = {**CONFIG.as_record(), "methods": ("topk",), "warmup": "dgc", "warmup_steps": 5}
    for name, steps in (("long", 9), ("run", 5)):
        options = Options(out=tmp_path / name, checkpoint_every=3, record=2)
        train_command.start(options, {**settings, "steps": steps})
    train_command.start(Options(resume=tmp_path / "run"), {"steps": 9})
    printed = (tmp_path / "printed").read_text()
    assert "Resumed topk after step 5" in printed
    assert "It ends after step 9 now, with the learning rates of a run of that length." in printed
    long, run = read_records(tmp_path / "long"), read_records(tmp_path / "run")
    assert digests(tmp_path / "run") == digests(tmp_path / "long")
    assert [record["step"] for record in run.evals] == [3, 5, 6, 9]  # 5: where it ended
    assert [record for record in numbers(run) if record.get("step") != 5 or "epoch" not in record] == numbers(long)
    assert studied(tmp_path / "run") == studied(tmp_path / "long")
    assert [json.loads(line)["step"] for line in studied(tmp_path / "run")["topk"]] == [0, 2, 4, 6, 8]


def test_what_is_recorded_of_gradients_survives_a_kill_too(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its first method, and again before its second has a checkpoint."""
    monkeypatch.setattr(train_command, "run", quick_run)
    run_dir = tmp_path / "run"
    with pytest.raises(RuntimeError, match=r"^worker 1 failed .* Signal 9"):
        launch(faulty_run, 2, "kill", 6, 1, CONFIG, run_dir, "test", plan(run_dir), None, RECORD)
    assert not (run_dir / "gaussiank").exists()
    with (run_dir / "topk" / "gradients.jsonl").open("a") as file:
        file.write('{"kind": "sample", "st')
    with pytest.raises(RuntimeError, match=r"^worker 1 failed .* Signal 9"):
        launch(faulty_run, 2, "kill", 4, 1, CONFIG, run_dir, "test", plan(run_dir), find_resume(run_dir), RECORD)
    assert (run_dir / "gaussiank" / "gradients.jsonl").exists()
    train_command.start(Options(resume=run_dir), {})
    assert digests(run_dir) == digests(whole)
    assert studied(run_dir) == studied(whole)
    assert studied(run_dir).keys() == {"topk", "gaussiank"}


def test_another_number_of_workers_keeps_the_residuals_mass(whole: Path, tmp_path: Path) -> None:
    run_dir, workers = tmp_path / "run", 3
    resume = find_resume(whole / "checkpoints" / "01-gaussiank-step-00000004")
    config = TrainConfig(**{**vars(CONFIG), "workers": workers})
    launch(written_run, workers, tmp_path / "printed", config, run_dir, "test", plan(run_dir), resume)
    printed = (tmp_path / "printed").read_text()
    said = re.search(rf"Residuals of 2 workers went to {workers}: .* changed by (\S+) of itself\.", printed)
    assert said is not None, printed
    assert float(said[1]) < 1e-6
    steps = [record["step"] for record in read_records(run_dir).steps if record["method"] == "gaussiank"]
    assert steps == [1, 2, 3, 4, 5, 6]
