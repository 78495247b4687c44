"""Fewer workers than before, in one process: two workers' parts are written by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from gaussiank.durable import sha256_of
from gaussiank_lab.checkpoint import FORMS, Manifest, SavedPart, find_resume, load_worker
from gaussiank_lab.checkpoint.saver import random_state, restore_random_state

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _world_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compression(rank: int, residual: torch.Tensor) -> dict[str, Any]:
    feedback = {"format": 1, "parameters": {"w": 3}, "residual": {"w": residual}, "velocity": {}}
    return {"format": 1, "rank": rank, "world_size": 2, "step": 7, "scale": 1.0, "feedback": feedback, "hints": {}}


def write(folder: Path, residuals: list[torch.Tensor]) -> None:
    folder.mkdir()
    states: dict[str, Any] = {"shared.pt": {"step": 7}}
    for rank, residual in enumerate(residuals):
        states[f"worker-{rank:05d}.pt"] = {"compression": compression(rank, residual), "random": random_state(CPU)}
    parts = []
    for name, state in states.items():
        torch.save(state, folder / name)
        parts.append(SavedPart(name, 0, (folder / name).stat().st_size, sha256_of(folder / name)))
    fields: dict[str, Any] = {"form": "plain", "world_size": 2, "method": "topk", "step": 7, "config": {}}
    fields |= {"parameters": {}, "data_digest": "", "run_dir": "..", "records_bytes": 0, "records_crc32": 0}
    Manifest(**fields, every=1, keep=1, versions={}, parts=tuple(parts)).write(folder)


def test_one_worker_takes_over_two_and_the_change_of_mass_is_measured(tmp_path: Path) -> None:
    write(tmp_path / "c", [torch.tensor([4.0, 0.0, 1e-9]), torch.tensor([2.0, 6.0, 1.0])])
    state = load_worker(find_resume(tmp_path / "c"))
    assert state.shared == {"step": 7}
    assert state.compression["feedback"]["residual"]["w"].tolist() == [3.0, 3.0, 0.5]  # the mean; 1e-9 is rounded off
    assert state.random is not None
    assert state.mass_change == pytest.approx(0.5e-9 / (9 + 9 + 0.25) ** 0.5, rel=1e-4)


def test_no_residual_at_all_has_not_changed(tmp_path: Path) -> None:
    write(tmp_path / "c", [torch.zeros(3), torch.zeros(3)])
    assert load_worker(find_resume(tmp_path / "c")).mass_change == 0


def test_only_the_files_that_are_needed_are_read(tmp_path: Path) -> None:
    parts = tuple(SavedPart(name, 0, 0, "") for name in ("shared.pt", "worker-00000.pt", "worker-00001.pt"))
    assert [part.name for part in FORMS["plain"].needed(parts, (1,))] == ["shared.pt", "worker-00001.pt"]
    assert FORMS["dcp"].needed(parts, (1,)) == parts


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    random.gauss(0, 1)  # leaves the second of a pair behind
    np.random.standard_normal()  # noqa: NPY002  the global generator is what is saved
    torch.save(random_state(CPU), tmp_path / "state.pt")

    def draws() -> tuple[float, ...]:
        numpy = np.random
        drawn = (random.gauss(0, 1), random.random(), numpy.standard_normal(), numpy.random())
        return (*map(float, drawn), float(torch.rand(())), float(torch.randn(())))

    first = draws()
    assert draws() != first
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
    assert draws() == first
