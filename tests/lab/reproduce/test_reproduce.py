"""Recipes on results that are written here, so that every verdict is known; one real training run shows the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tests.lab.study.conftest import train_recorded
from typer.testing import CliRunner

from gaussiank_lab.cli import app
from gaussiank_lab.report.records import RecordWriter
from gaussiank_lab.reproduce.job import Job, complete
from gaussiank_lab.reproduce.pages import write_pages
from gaussiank_lab.reproduce.recipe import ClaimOutcome, Recipe
from gaussiank_lab.reproduce.recipes import RECIPES, operator_time
from gaussiank_lab.reproduce.runner import do_jobs, read_outcome, reproduce, save_outcome
from gaussiank_lab.reproduce.settings import config
from gaussiank_lab.reproduce.training import PUBLISHED, RANDOM, main_jobs
from gaussiank_lab.study.recorder import Recorder
from gaussiank_lab.train.run import study_dir

K = 100
Accuracy = Callable[[Job, str], float]
Kept = Callable[[Job, str], float]


def as_claimed(job: Job, method: str) -> float:
    """Accuracies as the paper has them; a larger batch widens the gap."""
    gap = job.config.batch_size / 100 if method != "dense" else 0.0
    return 0.5 if method == RANDOM else 0.9 - 0.01 * gap


def no_gain(job: Job, method: str) -> float:
    return 0.9 if method in ("dense", RANDOM) else 0.7


def write_job(job: Job, out: Path, accuracy: Accuracy, kept_over_k: Kept) -> None:
    """Write what a job would leave."""
    steps = job.config.steps or 1
    with RecordWriter(job.where(out)) as writer:
        writer.write({"kind": "run", "format": 1, "config": job.config.as_record()})
        for method in job.config.methods:
            common = {"method": method, "k": K, "numel": 1000, "kept": K * kept_over_k(job, method)}
            sent = 8000.0 if method == "dense" else 8.0 * K
            for step in range(1, steps + 1):
                writer.write({"kind": "step", "step": step, "loss": 1 / step, "sent_bytes": sent, **common})
            ends = {"method": method, "step": steps, "accuracy": accuracy(job, method), "loss": 1.0}
            writer.write({"kind": "eval", **ends})
            writer.write({"kind": "method", **ends})
            if job.record_every is not None:
                recorder = Recorder(study_dir(job.where(out), method), every=2, operators=job.operators)
                train_recorded(recorder, steps=3, density=1.0 if method == "dense" else 0.02)


def in_band(job: Job, method: str) -> float:
    return 1.0


def out_of_band(job: Job, method: str) -> float:
    return 5.0 if method == PUBLISHED else 1.0


@pytest.fixture(scope="module")
def claimed_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results in which all is as the paper says."""
    out = tmp_path_factory.mktemp("claimed")
    for job in {job.key: job for recipe in RECIPES.values() for job in recipe.jobs("tiny")}.values():
        write_job(job, out, as_claimed, in_band)
    return out


TRAINED = [name for name, recipe in RECIPES.items() if recipe.jobs("tiny")]
WITHOUT_NUMBERS = {"histograms", "pi-squared", "bounds-real"}  # their verdict is the recorded vectors' own


@pytest.mark.parametrize("name", TRAINED)
def test_claims_hold_on_results_that_are_as_claimed(claimed_dir: Path, name: str) -> None:
    outcome = RECIPES[name].conclude(claimed_dir, "tiny")
    if name == "warmup":  # the warm-up gains nothing there
        assert outcome.verdict == "does not hold"
    elif name not in WITHOUT_NUMBERS:
        assert outcome.verdict == "holds", outcome.because
    assert outcome.drawings
    assert all(drawing.figure.axes[0].has_data() for drawing in outcome.drawings)
    assert all(len(row) == len(outcome.header) for row in outcome.rows)
    assert "nan" not in outcome.because
    assert "Fashion-MNIST subset" in outcome.standins


def test_recorded_vectors_are_judged(claimed_dir: Path) -> None:
    histograms = RECIPES["histograms"].conclude(claimed_dir, "tiny")
    assert [row[:2] for row in histograms.rows] == [("fnn3", "dense"), ("fnn3", "topk")]
    assert histograms.because.split()[2] == "4"  # two samples of each of two methods
    bounds = RECIPES["bounds-real"].conclude(claimed_dir, "tiny")
    assert {row[2] for row in bounds.rows} == {"linear", "squared", "cubed"}
    assert all(row[-1] == "0" for row in bounds.rows)


@pytest.mark.parametrize("name", ["convergence", "sensitivity", "accuracy-table"])
def test_claims_fail_on_results_that_are_not(tmp_path: Path, name: str) -> None:
    for job in RECIPES[name].jobs("tiny"):
        write_job(job, tmp_path, no_gain, in_band)
    outcome = RECIPES[name].conclude(tmp_path, "tiny")
    assert outcome.verdict == "does not hold"
    assert "20.0 points" in outcome.because


def test_counts_out_of_the_band_are_seen(tmp_path: Path) -> None:
    for job in RECIPES["kept"].jobs("tiny"):
        write_job(job, tmp_path, as_claimed, out_of_band)
    outcome = RECIPES["kept"].conclude(tmp_path, "tiny")
    assert outcome.verdict == "does not hold"
    assert "it keeps 5 to 5 of k" in outcome.because


def test_divergence_counts_as_zero(tmp_path: Path) -> None:
    def diverged(job: Job, method: str) -> float:
        return math.nan if method == "topk" else 0.9

    for job in main_jobs("tiny"):
        write_job(job, tmp_path, diverged, in_band)
    path = next(tmp_path.glob("jobs/*/records.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line.get("method") == "topk" and line["kind"] != "step":
            line["loss"] = None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert RECIPES["convergence"].conclude(tmp_path, "tiny").rows[0][2] == "0.0"


def test_synthetic_bounds_hold_with_limits() -> None:
    outcome = RECIPES["bounds-synthetic"].conclude(Path("nowhere"), "tiny")
    assert outcome.verdict == "holds with limits"
    assert "leaves 0.30 at k = 2, where the bound promises 0.25" in outcome.because
    cells = {row[0]: row[1:] for row in outcome.rows}
    assert cells["normal"] == ("0.987304", "0.915508", "0.560714")
    assert cells["bound: cubed"][0] == cells["uniform"][0] == "0.997003"


def test_operator_times_are_measured() -> None:
    outcome = RECIPES["operator-time"].conclude(Path("nowhere"), "tiny")
    assert [row[0].partition(",")[0] for row in outcome.rows] == [operator_time.TORCH, *operator_time.OPERATORS]
    assert all(float(cell) > 0 for row in outcome.rows for cell in row[1:])


# ---------------------------------------------------------------------- running


class Fake(Job):
    """A job that only leaves a file, or fails."""

    def do(self, out: Path) -> None:
        if self.config.seed == 9:
            raise RuntimeError("worker 0 failed")
        write_job(self, out, as_claimed, in_band)
        with (out / "log").open("a") as log:
            log.write(f"{self.config.seed} ")


def jobs(*seeds: int) -> list[Job]:
    return [Fake(config("fnn3", "tiny", ("dense",), seed=seed)) for seed in seeds]


def test_jobs_are_done_once_and_what_is_done_is_kept(tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    with pytest.raises(RuntimeError, match="worker 0 failed"):
        do_jobs(jobs(0, 1, 9, 2), tmp_path, console)
    do_jobs(jobs(0, 1, 2), tmp_path, console)
    assert (tmp_path / "log").read_text() == "0 1 2 "
    text = console.export_text()
    assert "Training run 2 of 4" in text
    assert "left" in text
    assert "2 of 3 training runs are done already." in text


def test_recipes_share_jobs(tmp_path: Path) -> None:
    def conclude(out: Path, scale: str) -> ClaimOutcome:
        return ClaimOutcome("holds", f"{len(jobs(0)[0].records(out).evals)} evaluation")

    recipes = [Recipe(name, name, "claim", "criterion", conclude, lambda scale: jobs(0)) for name in ("one", "two")]
    saved = reproduce(recipes, "tiny", tmp_path, Console(quiet=True))
    assert (tmp_path / "log").read_text() == "0 "
    assert [(row["verdict"], row["because"]) for row in saved] == [("holds", "1 evaluation")] * 2


def test_without_training_only_whole_models_are_judged(tmp_path: Path) -> None:
    several = [Fake(config(model, "tiny", ("dense",), seed=seed)) for model in ("fnn3", "lenet5") for seed in (0, 1)]

    def conclude(out: Path, scale: str) -> ClaimOutcome:
        return ClaimOutcome("holds", f"{[job.key[:10] for job in complete(several, out)]}")

    recipe = Recipe("some", "some", "claim", "criterion", conclude, lambda scale: list(several))
    console = Console(record=True, width=200)
    assert reproduce([recipe], "tiny", tmp_path, console, train=False) == []
    assert "some: not run, 0 of 4 training runs are done" in console.export_text()
    do_jobs(several[:3], tmp_path, Console(quiet=True))  # one seed of lenet5 is missing
    (saved,) = reproduce([recipe], "tiny", tmp_path, Console(quiet=True), train=False)
    assert saved["because"] == "['fnn3-seed0', 'fnn3-seed1']"


def test_same_settings_have_the_same_key_and_others_another() -> None:
    same = [Job(config("fnn3", "tiny", ("dense",), seed=0)).key for _ in range(2)]
    other = Job(config("fnn3", "tiny", ("dense",), seed=0), record_every=5).key
    assert same[0] == same[1] != other
    assert same[0].startswith("fnn3-seed0-")


def test_a_real_job_leaves_records_and_gradients(tmp_path: Path) -> None:
    job = Job(config("fnn3", "tiny", ("topk",), steps=2), record_every=1, operators=("randomk",))
    do_jobs([job], tmp_path, Console(quiet=True))
    assert len(job.records(tmp_path).steps) == 2
    samples = job.study(tmp_path, "topk").samples
    assert [sample.step for sample in samples] == [0, 1]
    assert samples[1].record["operators"]["randomk"]["kept"] == samples[1].value("k") == 199
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [job.key]


def test_a_job_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    job = Job(config("fnn3", "tiny", ("topk",), batch_size=100_000))
    with pytest.raises(ValueError, match="batch_size must be in"):
        do_jobs([job], tmp_path, Console(quiet=True))
    assert list((tmp_path / "jobs").iterdir()) == []


def test_full_scale_without_its_data_says_so() -> None:
    with pytest.raises(ValueError, match="must be"):
        main_jobs("full")[0].do(Path("nowhere"))


# ---------------------------------------------------------------------- outcomes and pages


def test_outcome_is_saved_whole_and_replaces_the_last(tmp_path: Path) -> None:
    recipe = RECIPES["bounds-synthetic"]
    saved = save_outcome(recipe, "tiny", recipe.conclude(tmp_path, "tiny"), tmp_path)
    place = tmp_path / "recipes" / recipe.name
    assert sorted(path.name for path in place.iterdir()) == ["laws.png", "laws.svg", "outcome.json"]
    assert read_outcome(tmp_path, recipe.name) == saved
    save_outcome(recipe, "tiny", ClaimOutcome("does not hold", "changed"), tmp_path)
    assert [path.name for path in place.iterdir()] == ["outcome.json"]
    assert [path.name for path in (tmp_path / "recipes").iterdir()] == [recipe.name]


def test_damaged_outcome(tmp_path: Path) -> None:
    place = tmp_path / "recipes" / "kept"
    place.mkdir(parents=True)
    for text in ("{", "[]", '{"format": 1}'):
        (place / "outcome.json").write_text(text)
        with pytest.raises(ValueError, match="must be an outcome of this version"):
            read_outcome(tmp_path, "kept")


def test_pages(tmp_path: Path) -> None:
    recipe = RECIPES["bounds-synthetic"]
    save_outcome(recipe, "tiny", recipe.conclude(tmp_path, "tiny"), tmp_path)
    index = write_pages(list(RECIPES.values()), tmp_path, tmp_path / "pages").read_text()
    assert f"| [{recipe.title}](bounds-synthetic.md) | holds with limits | All 7 bell-shaped laws keep" in index
    assert index.count("not run yet") == len(RECIPES) - 1
    page = (tmp_path / "pages" / "bounds-synthetic.md").read_text()
    assert "**Verdict: holds with limits.**" in page
    assert "(bounds-synthetic/laws.svg)" in page
    assert (tmp_path / "pages" / "bounds-synthetic" / "laws.svg").read_text().startswith("<svg")
    assert "| normal | 0.987304 |" in page
    assert "**Verdict: not run yet.**" in (tmp_path / "pages" / "kept.md").read_text()


def test_command_line(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["reproduce", "--list", "--scale", "tiny"])
    assert listed.exit_code == 0
    assert all(f"{name}: " in listed.output for name in RECIPES)
    arguments = ["reproduce", "bounds-synthetic", "--scale", "tiny", "--out", str(tmp_path), "--pages"]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "pages")])
    assert done.exit_code == 0, done.output
    assert "bounds-synthetic: holds with limits" in done.output
    assert (tmp_path / "pages" / "index.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "names must name a recipe, got none"),
        (["everything"], "names must be all or among convergence"),
        (["kept", "--scale", "huge"], "scale must be one of tiny, small, full, got 'huge'"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["reproduce", *arguments])
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
