"""A training loop that treats a recorder as the hook does, without processes; test_recorder_workers.py has the hook."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.conftest import two_workers, worker_groups
from torch import nn

from gaussiank import ErrorFeedback, Layout, MomentumCorrection, parse_compressor
from gaussiank.reducer import Selector
from gaussiank_lab.study.recorder import Recorder

__all__ = ["two_workers", "worker_groups"]  # fixtures

Train = Callable[..., ErrorFeedback]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 60), nn.Tanh(), nn.Linear(60, 5))


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    """Train on noise that a seed fixes."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs = torch.randn(8, 30, generator=random)
        optimizer.zero_grad()
        (model(inputs) - inputs[:, :5]).square().mean().backward()
        optimizer.step()


def train_recorded(
    recorder: Any,
    steps: int = 7,
    density: float = 0.02,
    compressor: str = "topk",
    scope: str = "model",
    momentum: MomentumCorrection | None = None,
    poisoned: tuple[int, ...] = (),
    wire: str = "rice+bf16",
) -> ErrorFeedback:
    """Train the small model, tell the recorder what the hook would tell it, and close it.

    ``scope`` bucket makes two layouts, as two buckets would; gradients of ``poisoned`` steps are infinite.
    """
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    numels = {name: parameter.numel() for name, parameter in model.named_parameters()}
    feedback = ErrorFeedback(numels, momentum=momentum)
    selector = Selector(parse_compressor(compressor), per_layer=scope == "layer", rank=0)
    config = {"compressor": selector.compressor, "scope": scope, "momentum": momentum, "wire": wire}
    recorder.attach(config, numels, feedback, None)
    names = list(numels)
    groups = [names[2:], names[:2]] if scope == "bucket" else [names]
    parameters = dict(model.named_parameters())
    random = torch.Generator().manual_seed(0)
    for step in range(steps):
        inputs = torch.randn(8, 30, generator=random)
        optimizer.zero_grad()
        ((model(inputs) - inputs[:, :5]).square().mean() * (torch.inf if step in poisoned else 1)).backward()
        feedback.settle()
        recorder.begin(step, density)
        for group in groups:
            layout = Layout(tuple(group), tuple(numels[name] for name in group))
            grad = torch.cat([parameters[name].grad.flatten() for name in group])
            mean = _exchange(recorder, feedback, selector, layout, grad, density, step)
            for name, place in layout.slices():
                parameters[name].grad.copy_(mean[place].view_as(parameters[name]))
        feedback.seal()
        if step not in poisoned:
            optimizer.step()
    recorder.close()
    return feedback


def _exchange(
    recorder: Any, feedback: ErrorFeedback, selector: Selector, layout: Layout, grad: Any, density: float, step: int
) -> Any:
    recorder.taking(layout, [grad])
    if density == 1:
        due = feedback.take_all(layout, grad)
        recorder.taken(layout, layout.numel, None)
        mean = grad
    else:
        sparse = feedback.take(layout, grad, lambda u: selector.select(layout, u, density, step))
        recorder.taken(layout, selector.asked(layout, density).k, sparse)
        mean, due = sparse.dense(), True
    if due:
        feedback.record_finite(torch.isfinite(mean).all())
    recorder.arrived(layout, [mean])
    return mean


@pytest.fixture(scope="session")
def train() -> Train:
    return train_recorded


@pytest.fixture(scope="session")
def recorded_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a recorded run with raw vectors, which no test may change."""
    run_dir = tmp_path_factory.mktemp("study") / "run"
    operators = ("topk", "gaussiank:mode=published", "randomk")
    recorder = Recorder(run_dir, every=3, operators=operators, vectors=4, dense_mean=True)
    train_recorded(recorder, steps=13, compressor="gaussiank")
    return run_dir


@pytest.fixture
def study_dir(recorded_dir: Path, tmp_path: Path) -> Path:
    """Return a copy of the recorded run."""
    return shutil.copytree(recorded_dir, tmp_path / "run")
