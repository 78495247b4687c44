"""A recorder on two real workers: it records rank 0, compares with both, and both must have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank.lab.study.study import read_study


def train(rank: int, world_size: int, run_dir: str) -> list[dict[str, Any]]:
    """Return, for each step, this worker's gradient and what the mean of the sent vectors was."""
    torch.manual_seed(0)
    model = DDP(nn.Linear(50, 10, bias=False))
    rows = []
    with gaussiank.Recorder(run_dir, every=2, dense_mean=True) as recorder:
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
    recorder = gaussiank.Recorder(f"{run_dir}-{rank}") if rank == 0 else None
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
