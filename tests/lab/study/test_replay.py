from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from gaussiank import ErrorFeedback, Layout, SparseGradient, ops
from gaussiank.codec import Wire
from gaussiank_lab.study.recorder import Recorder
from gaussiank_lab.study.replay import IN_RUN, Replayed, replay, replay_table
from gaussiank_lab.study.sampling import SampledPart
from gaussiank_lab.study.study import read_study
from gaussiank_lab.study.vectors import snapshots

from .conftest import Train


@pytest.mark.parametrize("scope", ["bucket", "layer", "model"])
@pytest.mark.parametrize(
    "operator", ["topk", "gaussiank", "gaussiank:mode=published", "dgc", "trimmedtopk", "randomk:seed=3"]
)
def test_what_ran_is_repeated(tmp_path: Path, train: Train, operator: str, scope: str) -> None:
    train(Recorder(tmp_path, every=2, vectors=8), steps=9, compressor=operator, scope=scope, density=0.03)
    live, again = replay(tmp_path, [operator])
    assert live.operator == IN_RUN
    assert (again.density, again.snapshots) == (0.03, 5)
    assert again.contraction == pytest.approx(live.contraction, rel=1e-5)
    assert again.kept_over_k == live.kept_over_k


def test_thinned_vectors_agree_within_two_percent(tmp_path: Path) -> None:
    """A gradient of a linear layer is an outer product: a fixed stride would see the same few columns of it."""
    random = torch.Generator().manual_seed(0)
    layout = Layout(("w",), (200_000,))
    feedback = ErrorFeedback({"w": 200_000})
    with Recorder(tmp_path, every=1, vectors=2, vector_bytes=100_000) as recorder:
        recorder.attach({}, {"w": 200_000}, feedback, None)
        for step in range(2):
            grad = torch.outer(torch.randn(200, generator=random), torch.randn(1000, generator=random)).flatten()
            feedback.settle()
            recorder.begin(step, 0.02)
            recorder.taking(layout, [grad])
            sparse = feedback.take(layout, grad, lambda u: SparseGradient.pick(u, ops.select_topk(u, 4000)))
            recorder.taken(layout, 4000, sparse)
            feedback.seal()
            feedback.record_finite(torch.tensor(True))
    live, again = replay(tmp_path, ["topk"])
    assert snapshots(tmp_path)[0].stride == 16
    assert again.contraction == pytest.approx(live.contraction, rel=0.02)
    assert again.kept_over_k == pytest.approx(live.kept_over_k, rel=0.02)


def test_the_runs_own_row_is_what_its_records_say(study_dir: Path) -> None:
    steps = {shot.step for shot in snapshots(study_dir)}
    samples = [sample for sample in read_study(study_dir).samples if sample.step in steps]
    (live, *_) = replay(study_dir, [])
    assert live.contraction == pytest.approx(sum(sample.value("contraction") for sample in samples) / len(samples))
    assert live.kept_over_k == pytest.approx(sum(s.value("kept") for s in samples) / sum(s.value("k") for s in samples))


def test_operators_tried_while_running_are_repeated(study_dir: Path) -> None:
    steps = {shot.step for shot in snapshots(study_dir)}
    samples = [sample for sample in read_study(study_dir).samples if sample.step in steps]
    for row in replay(study_dir, ["topk", "gaussiank:mode=published", "randomk"])[1:]:
        tried = [sample.record["operators"][row.operator] for sample in samples]
        assert row.contraction == pytest.approx(sum(part["contraction"] for part in tried) / len(tried), rel=1e-5)
        kept, k = sum(part["kept"] for part in tried), sum(sample.value("k") for sample in samples)
        assert row.kept_over_k == pytest.approx(kept / k)


def test_densities_and_bits(study_dir: Path) -> None:
    rows = replay(study_dir, ["topk"], [0.01, 0.5, 1.0])[1:]
    assert [row.density for row in rows] == [0.01, 0.5, 1.0]
    for row in rows:
        k = round(row.density * 2165)
        least, most = (
            8 * 20 + 16 * k,
            8 * Wire("rice", "bf16").max_bytes(k, 2165),
        )  # header and values; and any indices
        assert least < row.bits_per_entry * k <= most
        assert row.bits_per_element == pytest.approx(row.bits_per_entry * k / 2165)
        assert row.select_us > 0
    assert rows[0].contraction > rows[1].contraction > rows[2].contraction == 0


@pytest.mark.parametrize(
    ("wire", "operator", "bits"), [("raw+fp32", "topk", 64), ("rice+8bit", "randomk:shared=true", 8.125)]
)
def test_bits_are_those_of_the_runs_wire(tmp_path: Path, train: Train, wire: str, operator: str, bits: float) -> None:
    train(Recorder(tmp_path, every=2, vectors=2), steps=3, density=0.1, scope="model", wire=wire)
    (row,) = replay(tmp_path, [operator])[1:]
    k = round(0.1 * 2165)
    framing = 20 + (4 if "shared" in operator else 0)  # where indices are drawn, a fingerprint says so
    assert row.bits_per_entry * k == pytest.approx(8 * framing + bits * k, abs=8)


def test_what_came_back_is_not_what_was_selected_from() -> None:
    """Entries that a message had no room for, and errors of rounding, are in the residual by the time it is read."""
    part = SampledPart(
        Layout(("w",), (4,)), torch.zeros(4), sparse=SparseGradient(torch.tensor([1, 3]).int(), torch.ones(2), 4)
    )
    part.read_back(torch.tensor([0.5, 0.004, 0.0, 1.0]))
    assert part.accumulated is not None
    assert part.accumulated.tolist() == [0.5, 1.0, 0.0, 1.0]


def test_table(study_dir: Path) -> None:
    rows = replay(study_dir, ["topk", "gaussiank:mode=published"])
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(replay_table(rows))
    text = capture.get()
    assert f"{rows[1].contraction:.5f}" in text
    assert "in the run" in text
    assert "Over 3 recorded vectors." in text
    assert max(map(len, text.splitlines())) <= 80
    assert math.isnan(rows[0].select_us)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["topkk"],), "compressor must be one of"),
        ((["topk"], [0.0]), r"densities must be in \(0, 1\], got 0"),
        ((["topk"], [2.0]), r"densities must be in \(0, 1\], got 2"),
        ((["topk"], [0.1], ["rice+bf17"]), "values must be one of"),
        ((["topk"], [0.1], ["seed+bf16"]), "wire must send its indices"),
    ],
)
def test_bad_arguments(study_dir: Path, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(study_dir, *arguments)


def test_a_run_without_vectors(tmp_path: Path, train: Train) -> None:
    train(Recorder(tmp_path), steps=1)
    with pytest.raises(FileNotFoundError, match=r"Record with Recorder\(\.\.\., vectors=8\)"):
        replay(tmp_path, ["topk"])


def test_wires(study_dir: Path) -> None:
    wires = ["raw+fp32", "rice+bf16", "chunks+2bit", "rice+8bit+stochastic"]
    _, plain, *rows = replay(study_dir, ["topk"], [0.2]) + replay(study_dir, ["topk"], [0.2], wires)[1:]
    assert (plain.wire, [row.wire for row in rows]) == ("", wires)
    exact, rounded, coarse, drawn = rows
    assert exact.contraction == plain.contraction < rounded.contraction < coarse.contraction
    assert rounded.contraction == pytest.approx(exact.contraction, rel=1e-4)  # bfloat16 takes off 2^-9 at most
    assert drawn == replace(replay(study_dir, ["topk"], [0.2], wires[3:])[1], **times(drawn))
    assert exact.bits_per_entry > 64 > 33 > rounded.bits_per_entry > coarse.bits_per_entry
    assert {row.kept_over_k for row in rows} == {1.0}
    assert all(row.encode_us > 0 for row in rows)
    assert math.isnan(plain.encode_us)


def times(row: Replayed) -> dict[str, float]:
    return {"select_us": row.select_us, "encode_us": row.encode_us}


def test_what_arrives_is_what_counts(study_dir: Path) -> None:
    """The contraction on a wire is that of the payload, decoded."""
    wire = Wire.parse("chunks+4bit")
    (row,) = replay(study_dir, ["topk"], [0.2], [str(wire)])[1:]
    left = []
    for shot in snapshots(study_dir):
        for piece in shot.pieces:
            u = torch.from_numpy(piece.accumulated)
            sparse = SparseGradient.pick(u, ops.select_topk(u, round(0.2 * u.numel())))
            sparse = SparseGradient(sparse.indices, wire.round(sparse.values), sparse.numel)
            arrived = wire.decode(wire.encode(sparse))
            rest = u.double()
            rest[arrived.indices.long()] -= arrived.values
            left.append(float(rest.square().sum() / u.double().square().sum()))
    assert row.contraction == pytest.approx(sum(left) / len(left))


def test_table_with_wires(study_dir: Path) -> None:
    rows = replay(study_dir, ["gaussiank:mode=published"], [0.001, 0.01], ["eliasfano+8bit+stochastic", "rice+bf16"])
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(replay_table(rows))
    text = capture.get()
    assert "rice+bf16" in text
    assert "stochastic" in text
    assert "encode" in text
    assert max(map(len, text.splitlines())) <= 80
