"""One worker in this process, and a small model that trains on it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank

Train = Callable[..., "gaussiank.Compression"]


@contextlib.contextmanager
def group_of_one() -> Iterator[None]:
    """Be a worker by itself; other tests of this process start groups of their own before and after."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def one_worker() -> Iterator[None]:
    with group_of_one():
        yield


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    """Train on noise that a seed fixes."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs = torch.randn(8, 30, generator=random)
        optimizer.zero_grad()
        (model(inputs) - inputs[:, :5]).square().mean().backward()
        optimizer.step()


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 60), nn.Tanh(), nn.Linear(60, 5))


def train_recorded(recorder: Any, steps: int = 7, density: Any = 0.02, **options: Any) -> Any:
    """Train the small model through the hook with a recorder, and close it."""
    model = DistributedDataParallel(small_model())
    compression = gaussiank.compress(model, density, recorder=recorder, **options)
    train_steps(model, torch.optim.SGD(model.parameters(), lr=0.05), steps)
    recorder.close()
    return compression


@pytest.fixture
def train(one_worker: None) -> Train:
    """Return ``train_recorded``, within a process group."""
    return train_recorded


@pytest.fixture(scope="session")
def recorded_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a recorded run with raw vectors, which no test may change."""
    run_dir = tmp_path_factory.mktemp("study") / "run"
    recorder = gaussiank.Recorder(
        run_dir, every=3, operators=("topk", "gaussiank:mode=published", "randomk"), vectors=4, dense_mean=True
    )
    with group_of_one():
        train_recorded(recorder, steps=13, compressor="gaussiank", scope="model")
    return run_dir


@pytest.fixture
def study_dir(recorded_dir: Path, tmp_path: Path) -> Path:
    """Return a copy of the recorded run."""
    return shutil.copytree(recorded_dir, tmp_path / "run")
