"""Weights in channels_last: DDP lays their gradients down in another order, and residuals know which entry is which."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank
from gaussiank.layout import strides_in_memory

SHAPES = {"bias": (7,), "conv": (6, 5, 3, 3), "point": (4, 8, 1, 1), "volume": (3, 4, 2, 2, 3)}


@pytest.fixture(autouse=True)
def _world_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Fed(nn.Module):
    """Has the gradients that it is fed, exactly."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    def forward(self, fed: dict[str, Tensor]) -> Tensor:
        return torch.stack([(getattr(self, name) * grad).sum() for name, grad in fed.items()]).sum()


def in_format(module: nn.Module, last: bool) -> nn.Module:
    for parameter in module.parameters() if last else ():
        if parameter.dim() > 3:
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            parameter.data = parameter.data.to(memory_format=formats[parameter.dim()])
    return module


def feed(step: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(step)
    whole = {name: torch.randint(-(2**18), 2**18, shape, generator=random) for name, shape in SHAPES.items()}
    return {name: grad.float() for name, grad in whole.items()}  # sums of whole numbers are not rounded


class Run:
    """A model under compression, and what it was fed less what came back."""

    def __init__(self, last: bool, *, late: bool = False, **how: Any) -> None:
        module = in_format(Fed(), last and not late)
        # without these views, DDP itself permutes the first gradients after a late conversion (torch 2.13)
        self.ddp = DistributedDataParallel(module, gradient_as_bucket_view=late)
        self.compression = gaussiank.compress(self.ddp, 0.05, wire="raw+fp32", **how)
        in_format(module, last)
        self.owed = {name: torch.zeros(shape) for name, shape in SHAPES.items()}

    def step(self, step: int) -> dict[str, Tensor]:
        self.ddp.zero_grad()
        self.ddp(feed(step)).backward()
        means = {name: parameter.grad for name, parameter in self.ddp.module.named_parameters()}
        for name, grad in feed(step).items():
            self.owed[name] += grad - means[name]
        return means

    def kept(self, name: str) -> Tensor:
        return self.compression.feedback.residual(name)


def test_strides_are_those_of_memory() -> None:
    assert strides_in_memory(torch.zeros(4, 3, 2, 2)) is None
    assert strides_in_memory(torch.zeros(4, 3, 1, 1).to(memory_format=torch.channels_last)) is None  # either order
    assert strides_in_memory(torch.zeros(3, 5).t()) == (1, 5)
    assert strides_in_memory(torch.zeros(3, 1).expand(3, 5)) is None


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # torch's own, of a conversion after wrapping
def test_a_residual_is_that_of_its_entry() -> None:
    for late in (False, True):  # converted after it was wrapped: DDP follows before the second backward
        for scope in ("bucket", "layer", "model"):
            run = Run(last=True, late=late, scope=scope)
            for step in range(4):
                run.step(step)
                for name, shape in SHAPES.items():
                    assert run.kept(name).shape == shape
                    assert torch.equal(run.kept(name), run.owed[name]), (name, step)


def test_a_state_goes_on_in_the_other_format() -> None:
    for before in (False, True):
        for after in (False, True):
            first = Run(last=before, momentum=gaussiank.MomentumCorrection(0.9))
            first.step(0)
            first.step(1)
            state = copy.deepcopy(first.compression.state_dict())
            assert all(
                held.shape == (first.owed[name].numel(),) for name, held in state["feedback"]["residual"].items()
            )
            second = Run(last=after, momentum=gaussiank.MomentumCorrection(0.9))
            second.step(5)  # DDP lays out its buckets anew after it
            second.compression.load_state_dict(state)
            for step in (2, 3):
                for name in SHAPES:
                    assert torch.equal(first.kept(name), second.kept(name)), (name, before, after)
                theirs, ours = first.step(step), second.step(step)
                assert all(torch.equal(theirs[name], ours[name]) for name in SHAPES), (before, after)


def test_a_recorder_sees_the_residual_that_the_gradient_meets() -> None:
    run = Run(last=True)
    run.step(0)
    feedback = run.compression.feedback
    layout = next(iter(run.compression._layouts.values()))
    feedback.load_state_dict(feedback.state_dict())  # lies in the order of indices until the next step
    moved = feedback.residuals(layout)
    for name, piece in layout.pieces():
        assert torch.equal(piece.of(moved, SHAPES[name]), run.owed[name])
