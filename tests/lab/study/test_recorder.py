"""The recorder against vectors that the test computes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.each import each
from torch import nn

import gaussiank
from gaussiank_lab.study.recorder import Recorder
from gaussiank_lab.study.sampling import sketch_of
from gaussiank_lab.study.study import read_study
from gaussiank_lab.study.vectors import snapshots
from gaussiank_lab.theory.bounds import tail_share

from .conftest import Train, small_model, train_steps


class Spy:
    """An observer that keeps every vector, to hold the recorder to."""

    def __init__(self, inner: Recorder) -> None:
        self.inner = inner
        self.settings = inner.settings
        self.rows: dict[int, list[dict[str, Any]]] = {}
        self.step = -1

    def attach(self, config: Any, numels: Any, residuals: Any, group: Any) -> None:
        self.residuals = residuals
        self.inner.attach(config, numels, residuals, group)

    def begin(self, step: int, density: float) -> None:
        self.inner.begin(step, density)
        self.step = step

    def taking(self, layout: Any, grads: Any) -> None:
        residual = self.residuals.residuals(layout)
        row = {"grad": torch.cat(list(grads)).clone(), "residual": residual}
        self.rows.setdefault(self.step, []).append(row)
        self.inner.taking(layout, grads)

    def taken(self, layout: Any, k: int, sparse: Any) -> None:
        self.rows[self.step][-1]["sparse"] = sparse
        self.inner.taken(layout, k, sparse)

    def arrived(self, layout: Any, grads: Any) -> None:
        self.inner.arrived(layout, grads)

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("scope", ["bucket", "layer", "model"])
@pytest.mark.parametrize("compressor", ["topk", "gaussiank:mode=published"])
def test_records_hold_the_vectors_of_the_step(tmp_path: Path, train: Train, scope: str, compressor: str) -> None:
    spy = Spy(Recorder(tmp_path, every=3))
    train(spy, compressor=compressor, scope=scope)
    study = read_study(tmp_path)
    assert [sample.step for sample in study.samples] == [0, 3, 6]  # the last step's too, although no step follows it
    assert study.numel == 30 * 60 + 60 + 60 * 5 + 5
    for sample in study.samples:
        rows = spy.rows[sample.step]
        assert len(rows) == (2 if scope == "bucket" else 1)
        grad, residual = (torch.cat([row[name] for row in rows]) for name in ("grad", "residual"))
        for name, vector in (("grad", grad), ("residual", residual), ("accumulated", grad + residual)):
            assert sample.vectors[name].square_sum == pytest.approx(float(vector.double().square().sum()), rel=1e-6)
            assert (sample.vectors[name].counts == sketch_of(vector).counts).all() or name == "residual"
        energy = float((grad + residual).double().square().sum())
        sent = sum(float(row["sparse"].values.double().square().sum()) for row in rows)
        assert sample.value("contraction") == pytest.approx(1 - sent / energy, rel=1e-6)
        assert sample.value("kept") == sum(row["sparse"].kept for row in rows)
    assert study.samples[0].vectors["residual"].square_sum == 0
    assert study.samples[2].vectors["residual"].square_sum > 0


def test_layers_add_up(tmp_path: Path, train: Train) -> None:
    train(Recorder(tmp_path, every=6))
    for sample in read_study(tmp_path).samples:
        assert set(sample.layers) == {"0.weight", "0.bias", "2.weight", "2.bias"}
        for name, whole in sample.vectors.items():
            parts = [sample.layer(layer, name) for layer in sample.layers]
            assert sum(part.numel for part in parts if part) == whole.numel
            assert sum(part.square_sum for part in parts if part) == pytest.approx(whole.square_sum)
        layers = sample.record["layers"].values()
        assert sum(layer["kept"] for layer in layers) == sample.value("kept")
        sent = sum(layer["sent_energy"] for layer in layers)
        energy = sample.vectors["accumulated"].square_sum
        assert 1 - sent / energy == pytest.approx(sample.value("contraction"), abs=1e-6)


def test_operators_are_measured_on_the_same_vector(study_dir: Path) -> None:
    by_step = {snapshot.step: snapshot for snapshot in snapshots(study_dir)}
    for sample in read_study(study_dir).samples:
        tried = sample.record["operators"]
        k = int(sample.value("k"))
        assert tried["topk"]["kept"] == tried["randomk"]["kept"] == k
        if sample.step in by_step:
            u = by_step[sample.step].pieces[0].accumulated
            assert tried["topk"]["contraction"] == pytest.approx(tail_share(u, k), rel=1e-6)
        assert tried["topk"]["contraction"] < tried["randomk"]["contraction"] <= 1


def test_kept_of_every_step_is_noted(study_dir: Path) -> None:
    rows = [sample.record["since"] for sample in read_study(study_dir).samples]
    assert [step for row in rows for step in row["step"]] == list(range(13))
    assert all(2 / 3 <= kept / k <= 4 / 3 for row in rows for kept, k in zip(row["kept"], row["k"], strict=True))


def test_one_worker_without_compression_points_along_the_dense_mean(tmp_path: Path, train: Train) -> None:
    train(Recorder(tmp_path, every=3, dense_mean=True), density=1.0, steps=4)
    for sample in read_study(tmp_path).samples:
        assert sample.value("cosine") == pytest.approx(1, abs=1e-6)
        assert sample.value("contraction") == 0
        assert sample.record["age"]["mean"] == 0
        assert sample.value("kept") == sample.value("k") == 2165


def test_cosine_is_that_of_the_sent_vector(tmp_path: Path, train: Train) -> None:
    spy = Spy(Recorder(tmp_path, every=1, dense_mean=True))
    train(spy, steps=3)
    for sample in read_study(tmp_path).samples:
        (row,) = spy.rows[sample.step]
        sent, grad = row["sparse"].dense().double(), row["grad"].double()
        assert sample.value("cosine") == pytest.approx(float(sent @ grad / sent.norm() / grad.norm()), rel=1e-5)


def test_without_feedback_u_is_the_gradient(tmp_path: Path, train: Train) -> None:
    train(Recorder(tmp_path, every=1), steps=3, compressor="randomk:feedback=false")
    for sample in read_study(tmp_path).samples:
        assert "residual" not in sample.vectors
        assert (sample.vectors["accumulated"].counts == sample.vectors["grad"].counts).all()


def test_momentum_correction_is_seen(tmp_path: Path, train: Train) -> None:
    """u is residual + velocity there, not residual + gradient."""
    momentum = gaussiank.MomentumCorrection(masking=False)
    feedback = train(Recorder(tmp_path, every=4), steps=5, momentum=momentum)
    last = read_study(tmp_path).samples[-1]
    stayed = sum(float(part.double().square().sum()) for part in feedback.state_dict()["residual"].values())
    u = last.vectors["accumulated"].square_sum
    assert stayed == pytest.approx(u * last.value("contraction"), rel=1e-6)
    assert last.vectors["grad"].square_sum < u


def test_a_step_that_was_not_finite_has_no_accumulated_vector(tmp_path: Path, train: Train) -> None:
    train(Recorder(tmp_path, every=1), steps=3, poisoned=(1,))
    first, bad, after = read_study(tmp_path).samples
    assert bad.vectors["grad"].nonfinite > 0
    assert (bad.selected, bad.record.get("kept")) == ("grad", None)
    assert after.vectors["residual"].square_sum == pytest.approx(
        first.vectors["accumulated"].square_sum * first.value("contraction")
    )


def test_any_loop_in_three_lines(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    grads = []
    optimizer.register_step_pre_hook(lambda *_: grads.append(torch.cat([p.grad.flatten() for p in model.parameters()])))
    with Recorder(tmp_path, every=2) as recorder:
        recorder.watch(model, optimizer)
        train_steps(model, optimizer, 5)
    train_steps(model, optimizer, 2)  # closed: nothing more is recorded
    study = read_study(tmp_path)
    assert [sample.step for sample in study.samples] == [0, 2, 4]
    assert study.compressor == "none"
    for sample in study.samples:
        assert set(sample.vectors) == {"grad"}
        assert sample.selected == "grad"
        expected = float(grads[sample.step].double().square().sum())
        assert sample.vectors["grad"].square_sum == pytest.approx(expected)


def test_parameters_without_gradient_count_as_zeros(tmp_path: Path) -> None:
    model = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path, every=1) as recorder:
        recorder.watch(model, optimizer)
        model[0](torch.ones(1, 3)).sum().backward()
        optimizer.step()
    (sample,) = read_study(tmp_path).samples
    assert (sample.vectors["grad"].numel, sample.vectors["grad"].zeros) == (8, 4)


def test_opening_says_how_the_run_was_made(study_dir: Path) -> None:
    run = read_study(study_dir).run
    assert run["compression"]["compressor"] == "GaussianK(mode='bracketed')"
    assert run["compression"]["scope"] == "model"
    assert (run["world_size"], run["every"]) == (1, 3)


@each(
    ("options", "message"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"vectors": -1}, "vectors must be at least 0, got -1"),
        ({"vector_bytes": 0}, "vector_bytes must be at least 1, got 0"),
        ({"operators": ("topkk",)}, "compressor must be one of"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recorder(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_second_model_or_study_is_refused(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path) as recorder:
        recorder.watch(model, optimizer)
        with pytest.raises(ValueError, match="vectors must be 0 for watch, got more"):
            Recorder(tmp_path / "other", vectors=3).watch(model, optimizer)
        with pytest.raises(RuntimeError, match="recorder must watch one model, got a second"):
            recorder.watch(model, optimizer)
    with pytest.raises(FileExistsError, match="must hold no records yet"):
        Recorder(tmp_path).watch(model, optimizer)


def test_a_state_is_loaded_once_and_into_its_own_study(tmp_path: Path) -> None:
    def watched(resume: bool) -> tuple[Recorder, nn.Module, torch.optim.Optimizer]:
        model = small_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        recorder = Recorder(tmp_path, every=2, resume=resume)
        recorder.watch(model, optimizer)
        return recorder, model, optimizer

    recorder, *trained = watched(False)
    train_steps(*trained, 3)
    state = recorder.state_dict()
    assert json.loads((tmp_path / "gradients.jsonl").read_text().splitlines()[-1])["step"] == 2  # it was waiting
    with pytest.raises(RuntimeError, match="recorder must be made with resume=True, and watch a model, to load"):
        recorder.load_state_dict(state)
    train_steps(*trained, 3)
    recorder.close()
    again, *trained = watched(True)
    train_steps(*trained, 1)  # before it is told, nothing is recorded
    again.load_state_dict(state)
    train_steps(*trained, 2)
    again.close()
    assert [sample.step for sample in read_study(tmp_path).samples] == [0, 2, 4]
    (tmp_path / "gradients.jsonl").write_text("mine")
    with pytest.raises(
        ValueError, match=r"gradients\.jsonl must begin with the \d+ bytes that it had at the checkpoint"
    ):
        watched(True)[0].load_state_dict(state)
    assert (tmp_path / "gradients.jsonl").read_text() == "mine"


def test_closing_twice_and_without_a_model(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "none")
    recorder.close()
    recorder.close()
    assert not (tmp_path / "none").exists()


def test_lines_are_json(study_dir: Path) -> None:
    lines = (study_dir / "gradients.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["study"] + 5 * ["sample"]
