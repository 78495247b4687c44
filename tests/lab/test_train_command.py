"""What is refused before any worker starts: one sentence each, and nothing changes on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.each import each

from gaussiank_lab.checkpoint import CheckpointPlan, find_resume
from gaussiank_lab.models import MODELS
from gaussiank_lab.report.records import read_records
from gaussiank_lab.train import run as lab_run
from gaussiank_lab.train import start as train_command
from gaussiank_lab.train.config import TrainConfig
from gaussiank_lab.train.start import Options, start

LAST = "00-topk-step-00000004"


@pytest.fixture(autouse=True)
def _not_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_MAX_RESTARTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _world_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(lab_run, "_conclude", lambda run_dir: None)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def trained(run_dir: Path, **settings: Any) -> tuple[TrainConfig, CheckpointPlan]:
    fields = {"model": "fnn3", "methods": ("topk",), "workers": 1, "steps": 4, "batch_size": 8, "density": 0.01}
    config, plan = TrainConfig(**{**fields, **settings}), CheckpointPlan(run_dir / "checkpoints", every=2)
    lab_run.run(config, run_dir, "test", plan)
    return config, plan


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of one worker with two checkpoints; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab_run, "_conclude", lambda run_dir: None)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # their number changes the last bits of a product
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        trained(folder / "run")
        dist.destroy_process_group()
        torch.set_num_threads(threads)
    return folder / "run"


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rewrite_manifest(run_dir: Path, **changes: Any) -> None:
    """Change a manifest as another release would: with a right checksum."""
    path = run_dir / "checkpoints" / LAST / "manifest.json"
    content = {**json.loads(path.read_text()), **changes}
    del content["sha256"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": digest}))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "one flipped bit": (lambda last: flip(last / "worker-00000.pt", 5000), "must have SHA-256"),
    "a flipped bit in what is shared": (lambda last: flip(last / "shared.pt", -1), "must have SHA-256"),
    "a truncated part": (lambda last: cut(last / "shared.pt"), "shared.pt must have"),
    "a missing worker": (lambda last: (last / "worker-00000.pt").unlink(), "hold a part of worker 0, got no such file"),
    "a truncated manifest": (lambda last: cut(last / "manifest.json") or cut(last / "manifest.json"), "must be JSON"),
    "a flipped manifest": (lambda last: flip(last / "manifest.json", 40), "must"),
    "changed records": (lambda last: flip(last.parents[1] / "records.jsonl", 30), "records.jsonl must begin with the"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_nothing_changes(run_dir: Path, damage: str) -> None:
    harm, sentence = DAMAGE[damage]
    harm(run_dir / "checkpoints" / LAST)
    before = contents(run_dir)
    with pytest.raises(ValueError, match=sentence) as raised:
        start(Options(resume=run_dir), {})
    assert str(raised.value).count("\n") == 0
    assert contents(run_dir) == before


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"model": "lenet5"}, "^model must be 'fnn3', as in .*, got 'lenet5'. Leave it out, or start a new run"),
        ({"lr": 0.5}, "^lr must be 0.02, as in .*, got 0.5"),
        ({"methods": ("topk", "dense")}, r"^methods must be \['topk'\], as in .*, got \['topk', 'dense'\]"),
    ],
)
def test_another_config_is_refused(run_dir: Path, given: dict[str, Any], sentence: str) -> None:
    before = contents(run_dir)
    with pytest.raises(ValueError, match=sentence):
        start(Options(resume=run_dir), given)
    assert contents(run_dir) == before


@pytest.mark.parametrize(
    ("saved", "given", "sentence"),
    [
        ({}, {"steps": 4}, None),
        ({}, {"steps": 3}, "^steps must reach past the 4 steps that are taken, got 3. Raise it."),
        (
            {"steps": None, "epochs": 2, "batch_size": 5000},
            {"epochs": 1},
            "^epochs must reach past the 4 steps that are taken, got 1 epochs of 2 steps. Raise it.",
        ),
        (
            {"lr_schedule": "cosine"},
            {"steps": 8},
            "^steps must keep to 4 steps with lr_schedule cosine, got 8: the learning rate of the 4 steps that are "
            "taken would have been another. Start a new run: gaussiank train --config .*run --steps 8.$",
        ),
        ({"lr_schedule": "cosine", "lr_warmup_steps": 4, "steps": 10}, {"steps": 20}, None),
        ({"lr_schedule": "step"}, {"steps": 8}, "^steps must keep to 4 steps with lr_schedule step, got 8"),
        ({"lr_schedule": "step", "steps": 8}, {"steps": 9}, None),
        ({"lr_schedule": "step", "steps": 8}, {"steps": 6}, "^steps must keep to 8 steps with lr_schedule step, got 6"),
        (
            {"methods": ["dense", "topk"]},
            {"steps": 8},
            "^steps must keep to 4 steps, at which dense ended, got 8. Start a new run: gaussiank train --config",
        ),
        ({"methods": ["topk", "dense"]}, {"steps": 8}, None),
    ],
)
def test_a_length_that_would_have_been_another_run_is_refused(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, saved: dict[str, Any], given: dict[str, Any], sentence: str | None
) -> None:
    path = run_dir / "checkpoints" / LAST / "manifest.json"
    rewrite_manifest(run_dir, config={**json.loads(path.read_text())["config"], **saved})
    before = contents(run_dir)
    launched: list[TrainConfig] = []
    monkeypatch.setattr(train_command, "launch", lambda *arguments, **_: launched.append(arguments[2]))
    if sentence is None:
        start(Options(resume=run_dir), given)
        assert launched[0].steps == given["steps"]
    else:
        with pytest.raises(ValueError, match=sentence):
            start(Options(resume=run_dir), given)
        assert not launched
    assert contents(run_dir) == before


def test_another_format_or_release_is_refused(run_dir: Path) -> None:
    rewrite_manifest(run_dir, format=2)
    with pytest.raises(ValueError, match=r"^format of .*manifest.json must be 1, got 2\. Resume with the gaussiank"):
        start(Options(resume=run_dir), {})
    rewrite_manifest(run_dir, format=1, config={"model": "fnn3", "warp": 9})
    with pytest.raises(ValueError, match=r"^fields of .* must be among .*, got 'warp'"):
        start(Options(resume=run_dir), {})


def test_a_resumed_run_records_gradients_as_it_did_or_not_at_all(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Any] = []
    monkeypatch.setattr(train_command, "launch", lambda *given, **_: launched.append(given[7]))
    study = run_dir / "topk" / "gradients.jsonl"
    study.parent.mkdir()
    study.write_text("ab")
    rewrite_manifest(run_dir, study={"every": 7, "size_bytes": 2, "crc32": zlib.crc32(b"ab")})
    start(Options(resume=run_dir), {})
    start(Options(resume=run_dir, record=7), {})
    assert launched == 2 * [{"every": 7}]
    with pytest.raises(ValueError, match=r"^record must be 7, as in .*, got 50. Leave it out.$"):
        start(Options(resume=run_dir, record=50), {})
    study.write_text("ba")
    before = contents(run_dir)
    with pytest.raises(ValueError, match=r"gradients.jsonl must begin with the 2 bytes that it had at the checkpoint"):
        start(Options(resume=run_dir), {})
    assert contents(run_dir) == before
    rewrite_manifest(run_dir, study=None)
    start(Options(resume=run_dir), {})
    start(Options(resume=run_dir, record=50, record_vectors=4), {})
    assert launched[2:] == [None, {"every": 50, "vectors": 4}]
    with pytest.raises(ValueError, match=r"^record_vectors must come with --record, got 4 alone\."):
        start(Options(resume=run_dir, record_vectors=4), {})


def test_an_older_checkpoint_needs_a_directory_of_its_own(run_dir: Path, tmp_path: Path) -> None:
    older = run_dir / "checkpoints" / "00-topk-step-00000002"
    with pytest.raises(ValueError, match=r"^resume must be the last checkpoint of a run .*, got 00-topk-step-00000002"):
        start(Options(resume=older), {})
    other = tmp_path / "other"
    other.mkdir()
    (other / "records.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match=r"^out must be a directory without records, got .*other"):
        start(Options(resume=older, out=other), {})
    assert (other / "records.jsonl").read_text() == "mine"


def test_a_path_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^resume must be a checkpoint, a folder of them or a run with some"):
        start(Options(resume=tmp_path), {})


@each(
    ("options", "sentence"),
    [
        ({"keep": 2}, "^keep must come with checkpoint_every, got 2 alone"),
        ({"checkpoint_dir": Path("x")}, "^checkpoint_dir must come with checkpoint_every, got x alone"),
        ({"checkpoint_form": "dcp"}, "^checkpoint_form must come with checkpoint_every"),
        ({"checkpoint_every": 0}, "^checkpoint_every must be at least 1, got 0"),
        ({"checkpoint_every": 5, "keep": 0}, "^keep must be at least 1, got 0"),
        ({"checkpoint_every": 5, "checkpoint_form": "zip"}, "^checkpoint_form must be one of plain, dcp, got 'zip'"),
        ({"max_restarts": 2}, "^max_restarts must come with checkpoint_every, got 2 alone"),
        ({"max_restarts": -1}, "^max_restarts must not be negative, got -1"),
        ({"record": 0}, "^record must be at least 1, got 0"),
        ({"track": "mlflow"}, "^track must be tensorboard, wandb or wandb:PROJECT, got 'mlflow'"),
        ({"resume": Path("x"), "recipe": "paper"}, "^recipe must be left out with resume, got paper"),
        ({"resume": Path("x"), "config": Path("y")}, "^config must be left out with resume, got y"),
    ],
)
def test_impossible_options_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        start(Options(**options), {"model": "fnn3"})
    assert not list(tmp_path.iterdir())


def test_what_torch_does_not_save_has_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint_every must be left out with powersgd, got 9: the hook of torch"):
        start(Options(checkpoint_every=9, out=tmp_path), {"model": "fnn3", "methods": ("powersgd",)})


@each(
    ("given", "sentence"),
    [
        ({"ema": 1.0}, r"^ema must be in \(0, 1\), got 1.0"),
        ({"precision": "fp8"}, "^precision must be one of fp32, bf16, fp16, got 'fp8'"),
        ({"accumulate": 0}, "^accumulate must be at least 1, got 0"),
        ({"accumulate": 99}, r"^accumulate must be in \[1, 78\] where an epoch has 78 batches, got 99"),
        ({"clip_mean": 0.0}, "^clip_mean must be above 0, got 0.0"),
        ({"timeout_s": 0.0}, "^timeout_s must be above 0, got 0.0"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        start(Options(out=tmp_path / "run"), {"model": "fnn3", **given})
    assert not (tmp_path / "run").exists()


def test_torchrun_restarts_itself_and_needs_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_MAX_RESTARTS"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match=r"^max_restarts must be left out under torchrun, got 2\."):
        start(Options(max_restarts=2, checkpoint_every=5), {"model": "fnn3"})
    with pytest.raises(ValueError, match=r"^out must be given with checkpoint_every under torchrun --max-restarts"):
        start(Options(checkpoint_every=5), {"model": "fnn3"})


def test_what_is_resumed_goes_to_the_workers(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(train_command, "launch", lambda *given, **named: launched.append((given, named)))
    start(Options(resume=run_dir, max_restarts=3), {"workers": 2, "timeout_s": 7.0})
    (_, workers, config, out, _, plan, resume, record, trackers), named = launched[0]
    assert (workers, config.workers, config.steps, config.timeout_s) == (2, 2, 4, 7.0)
    assert out == run_dir.resolve()
    assert plan == CheckpointPlan(run_dir / "checkpoints", every=2, keep=3)
    assert resume.manifest.step == 4
    assert (record, trackers) == (None, ())
    assert named == {"timeout_s": 7.0, "max_restarts": 3}
    start(Options(resume=run_dir / "checkpoints", out=tmp_path / "new", keep=1), {})
    _, _, _, out, _, plan, *_ = launched[1][0]
    assert out == tmp_path / "new"
    assert plan == CheckpointPlan(tmp_path / "new" / "checkpoints", every=2, keep=1)


# ---------------------------------------------------------------------- in the workers


@pytest.mark.usefixtures("_world_of_one")
def test_an_older_checkpoint_starts_a_new_run_with_the_same_end(run_dir: Path, tmp_path: Path) -> None:
    resume = find_resume(run_dir / "checkpoints" / "00-topk-step-00000002")
    config = TrainConfig(**{**resume.manifest.config, "methods": ("topk",)})
    before = contents(run_dir)
    lab_run.run(config, tmp_path / "new", "test", None, resume)
    assert contents(run_dir) == before
    old, new = read_records(run_dir), read_records(tmp_path / "new")
    assert [step["step"] for step in new.steps] == [1, 2, 3, 4]
    assert new.steps[:2] == old.steps[:2]
    assert new.methods[0]["digest"] == old.methods[0]["digest"]


@pytest.mark.usefixtures("_world_of_one")
def test_a_run_goes_on_for_more_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps an epoch; what is recorded differs from a longer run's in nothing but the test where it ended."""
    settings: dict[str, Any] = {"steps": None, "batch_size": 2500}
    trained(tmp_path / "long", epochs=3, **settings)
    trained(tmp_path / "run", epochs=1, **settings)
    monkeypatch.setattr(train_command, "launch", lambda work, _, *arguments, **__: work(*arguments))
    start(Options(resume=tmp_path / "run"), {"epochs": 3})
    long, run = read_records(tmp_path / "long"), read_records(tmp_path / "run")
    assert [record["step"] for record in run.steps] == list(range(1, 13))
    assert [record["loss"] for record in run.steps] == [record["loss"] for record in long.steps]
    assert run.evals == long.evals
    assert [record["digest"] for record in run.methods] == [record["digest"] for record in long.methods]
    assert run.run["config"]["epochs"] == json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 3
    assert find_resume(tmp_path / "run").manifest.config["epochs"] == 3


@pytest.mark.usefixtures("_world_of_one")
def test_a_run_whose_records_are_gone_goes_on_without_them(run_dir: Path, tmp_path: Path) -> None:
    digest = read_records(run_dir).methods[0]["digest"]
    (run_dir / "records.jsonl").unlink()
    resume = find_resume(run_dir / "checkpoints" / "00-topk-step-00000002")
    config = TrainConfig(**{**resume.manifest.config, "methods": ("topk",)})
    lab_run.run(config, tmp_path / "new", "test", None, resume)
    new = read_records(tmp_path / "new")
    assert [step["step"] for step in new.steps] == [3, 4]
    assert (new.methods[0]["steps"], new.methods[0]["digest"]) == (4, digest)


@pytest.mark.usefixtures("_world_of_one")
def test_another_model_of_the_same_name_is_refused(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = MODELS["fnn3"]

    def smaller(outputs: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, outputs))

    monkeypatch.setitem(MODELS, "fnn3", type(spec)(**{**vars(spec), "build": smaller}))
    resume = find_resume(run_dir)
    config = TrainConfig(**{**resume.manifest.config, "methods": ("topk",)})
    before = contents(run_dir)
    with pytest.raises(ValueError, match=r"^parameter 1.weight must have shape \[200, 784\], as in .*got \[10, 784\]"):
        lab_run.run(config, run_dir, "test", CheckpointPlan(run_dir / "checkpoints", every=2), resume)
    assert contents(run_dir) == before


@pytest.mark.usefixtures("_world_of_one")
def test_two_runs_never_write_to_one_folder(run_dir: Path) -> None:
    from gaussiank_lab.checkpoint import CheckpointFolder

    resume = find_resume(run_dir)
    config = TrainConfig(**{**resume.manifest.config, "methods": ("topk",)})
    folder = run_dir / "checkpoints"
    with (
        CheckpointFolder(folder).locked(),
        pytest.raises(RuntimeError, match=r"^checkpoint_dir must not be in use, got .*, where another run is writing"),
    ):
        lab_run.run(config, run_dir, "test", CheckpointPlan(folder, every=2), resume)
