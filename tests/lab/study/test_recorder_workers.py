"""A recorder on two real workers: it records rank 0, compares with both, and both must have it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank_lab.study.recorder import Recorder
from gaussiank_lab.study.replay import replay
from gaussiank_lab.study.study import read_study
from gaussiank_lab.study.vectors import snapshots


def train(rank: int, world_size: int, run_dir: str) -> list[dict[str, Any]]:
    """Return, for each step, this worker's gradient and what the mean of the sent vectors was."""
    torch.manual_seed(0)
    model = DDP(nn.Linear(50, 10, bias=False))
    rows = []
    with Recorder(run_dir, every=2, dense_mean=True) as recorder:
        gaussiank.compress(model, 0.05, recorder=recorder)
        for step in range(4):
            generator = torch.Generator().manual_seed(10 * step + rank)
            grad = torch.randn(10, 50, generator=generator)
            model.zero_grad()
            model(grad[:1]).sum().backward()
            rows.append({"input": grad[0], "mean": model.module.weight.grad.flatten().clone()})
    return rows


def alone(rank: int, world_size: int, run_dir: str) -> str:
    model = DDP(nn.Linear(5, 5))
    recorder = Recorder(f"{run_dir}-{rank}") if rank == 0 else None
    try:
        gaussiank.compress(model, 0.5, recorder=recorder)
    except ValueError as error:
        return str(error)
    return "accepted"


def test_records_rank_0_against_the_mean_of_both(two_workers: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    answers = two_workers.run(train, str(run_dir))
    samples = read_study(run_dir).samples
    assert [sample.step for sample in samples] == [0, 2]
    for sample in samples:
        grads = [rows[sample.step]["input"].repeat(10) for rows in answers]  # every row of the weight sees the input
        dense = (grads[0] + grads[1]).double()
        sent = answers[0][sample.step]["mean"].double()
        assert sample.value("cosine") == pytest.approx(float(sent @ dense / sent.norm() / dense.norm()), rel=1e-5)
        assert sample.vectors["grad"].square_sum == pytest.approx(float(grads[0].double().square().sum()))
    assert read_study(run_dir).run["world_size"] == 2


def test_a_recorder_on_one_worker_only_is_refused_by_both(two_workers: Any, tmp_path: Path) -> None:
    messages = two_workers.run(alone, str(tmp_path / "run"))
    assert all("recorder" in message for message in messages)


def resumed(rank: int, world_size: int, folder: str) -> None:
    """Train 7 steps with a recorder; then stop after 4 and a little more, and go on from there with new objects."""

    def begin(name: str, resume: bool) -> tuple[Any, ...]:
        torch.manual_seed(0)
        model = DDP(nn.Sequential(nn.Linear(30, 60), nn.Tanh(), nn.Linear(60, 5)))
        options: dict[str, Any] = {"every": 2, "operators": ("randomk", "gaussiank"), "dense_mean": True, "vectors": 2}
        recorder = Recorder(f"{folder}/{name}", **options, resume=resume)
        compression = gaussiank.compress(model, 0.02, compressor="gaussiank", recorder=recorder)
        return model, torch.optim.SGD(model.parameters(), lr=0.05), recorder, compression

    def step(number: int, model: Any, optimizer: Any, *_: Any) -> None:
        optimizer.zero_grad()
        model(torch.randn(8, 30, generator=torch.Generator().manual_seed(2 * number + rank))).square().mean().backward()
        optimizer.step()

    whole = begin("whole", False)
    for number in range(7):
        step(number, *whole)
    whole[2].close()

    cut = begin("cut", False)
    for number in range(4):
        step(number, *cut)
    states = cut[0].module.state_dict(), cut[3].state_dict(), cut[2].state_dict()
    states = copy.deepcopy(states)
    for number in range(4, 6):  # lost with the process
        step(number, *cut)
    cut[2].state_dict()
    if rank == 0:
        with Path(folder, "cut", "gradients.jsonl").open("a") as file:
            file.write('{"kind": "sam')

    again = begin("cut", True)
    step(0, *again)  # DDP orders its buckets; thrown away
    again[0].module.load_state_dict(states[0])
    again[3].load_state_dict(states[1])
    again[2].load_state_dict(states[2])
    for number in range(4, 7):
        step(number, *again)
    again[2].close()


def test_a_resumed_study_is_that_of_a_run_that_nobody_stopped(two_workers: Any, tmp_path: Path) -> None:
    two_workers.run(resumed, str(tmp_path))
    whole, cut = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / name).rglob("*")) if path.is_file()}
        for name in ("whole", "cut")
    )
    assert len(whole) == 3  # records and two vectors
    assert whole.keys() == cut.keys()
    lines, others = (files["gradients.jsonl"].splitlines() for files in (whole, cut))
    assert len(lines) == 1 + 4
    assert lines[1:] == others[1:]  # the first has the time
    for old, new in zip(snapshots(tmp_path / "whole"), snapshots(tmp_path / "cut"), strict=True):
        assert old.step == new.step
        assert (old.pieces[0].accumulated == new.pieces[0].accumulated).all()


def trained(rank: int, world_size: int, run_dir: str, scope: str, corrected: bool) -> tuple[Any, Any]:
    """Train twice, with a recorder and without; returns both final residuals and parameters."""
    ends = []
    for recorded in (True, False):
        torch.manual_seed(0)
        model = DDP(nn.Sequential(nn.Linear(30, 60), nn.Tanh(), nn.Linear(60, 5)))
        recorder = None
        if recorded:
            options: dict[str, Any] = {"every": 2, "operators": ("randomk", "gaussiank"), "dense_mean": True}
            recorder = Recorder(run_dir, vectors=3, **options)
        momentum = gaussiank.MomentumCorrection() if corrected else None
        how: dict[str, Any] = {"scope": scope, "momentum": momentum, "recorder": recorder}
        compression = gaussiank.compress(model, 0.02, compressor="gaussiank", **how)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        random = torch.Generator().manual_seed(rank)
        for _ in range(7):
            optimizer.zero_grad()
            model(torch.randn(8, 30, generator=random)).square().mean().backward()
            optimizer.step()
        if recorder:
            recorder.close()
        state = compression.state_dict()["feedback"]["residual"]
        ends.append(torch.cat([*state.values(), *(part.detach().flatten() for part in model.parameters())]))
    return ends[0], ends[1]


@pytest.mark.parametrize(("scope", "corrected"), [("model", False), ("bucket", True), ("layer", False)])
def test_recording_changes_nothing_and_replays(two_workers: Any, tmp_path: Path, scope: str, corrected: bool) -> None:
    for recorded, plain in two_workers.run(trained, str(tmp_path / "run"), scope, corrected):
        assert torch.equal(recorded, plain)
    samples = read_study(tmp_path / "run").samples
    assert [sample.step for sample in samples] == [0, 2, 4, 6]
    assert all(0 < sample.value("contraction") < 1 for sample in samples)
    live, again = replay(tmp_path / "run", ["gaussiank"])
    assert again.contraction == pytest.approx(live.contraction, rel=0.02)
    assert again.kept_over_k == pytest.approx(live.kept_over_k, rel=0.02)


def collect(rank: int, world_size: int, run_dir: str, collective: str, wire: str, corrected: bool) -> list[float]:
    """Return the energy of each step's own gradient + residual, as the test adds them up."""
    torch.manual_seed(0)
    model = DDP(nn.Linear(50, 10, bias=False))
    energies = []
    with Recorder(run_dir, every=1) as recorder:
        momentum = gaussiank.MomentumCorrection() if corrected else None
        how: dict[str, Any] = {"collective": collective, "wire": wire, "recorder": recorder, "momentum": momentum}
        compression = gaussiank.compress(model, 0.05, **how)
        for step in range(6):
            own = torch.randn(1, 50, generator=torch.Generator().manual_seed(10 * step + rank))
            model.zero_grad()
            compression.feedback.settle()
            before = compression.feedback.residual("weight").flatten().double()
            model(own).sum().backward()
            energies.append(float((own[0].repeat(10).double() + before).square().sum()))
    return energies


@pytest.mark.parametrize("collective", ["allgather", "split", "tree", "leader"])
@pytest.mark.parametrize("wire", ["raw+fp32", "rice+2bit"])
def test_what_comes_back_is_not_counted_twice(two_workers: Any, tmp_path: Path, collective: str, wire: str) -> None:
    """Refused entries and what rounding took off are in the residual after a step, and were in u once."""
    energies, _ = two_workers.run(collect, str(tmp_path / "run"), collective, wire, False)
    found = [sample.vectors["accumulated"].square_sum for sample in read_study(tmp_path / "run").samples]
    assert found == pytest.approx(energies, rel=1e-6)


def test_with_momentum_correction_u_is_recorded_where_it_is_known(two_workers: Any, tmp_path: Path) -> None:
    for collective, known in (("allgather", True), ("tree", False)):
        two_workers.run(collect, str(tmp_path / collective), collective, "rice+bf16", True)
        for sample in read_study(tmp_path / collective).samples:
            assert ("accumulated" in sample.vectors) == known
            assert ("contraction" in sample.record) == known
