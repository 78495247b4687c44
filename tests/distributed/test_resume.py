"""A resumed run is bit-equal to one that nobody interrupted, though DDP has yet to build its buckets as in that one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tests.each import each
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank

SMALL_BUCKETS = {"bucket_cap_mb": 0.005}


class Net(nn.Module):
    """Layers that are used in another order than they are defined in, and a convolution in ``channels_last``."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(24, 5)
        self.deep = nn.ModuleList([nn.Linear(24, 24) for _ in range(4)])
        self.first = nn.Conv2d(3, 6, 3).to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs).relu().flatten(1)
        for layer in reversed(self.deep):
            hidden = layer(hidden).tanh()
        return self.last(hidden)


def started(ddp: dict[str, Any], how: dict[str, Any]) -> tuple[DDP, gaussiank.Compression, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = DDP(Net(), **ddp)
    compression = gaussiank.compress(model, **how)
    return model, compression, torch.optim.SGD(model.parameters(), lr=0.1)


def trained(run: tuple[Any, ...], rank: int, steps: range) -> list[Tensor]:
    model, compression, optimizer = run
    for step in steps:
        inputs = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(100 * rank + step))
        model(inputs.to(memory_format=torch.channels_last)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    residuals = compression.state_dict()["feedback"]["residual"]
    return [*(one.detach().clone() for one in model.parameters()), *(residuals[name] for name in sorted(residuals))]


def differences(rank: int, world_size: int, ddp: dict[str, Any], how: dict[str, Any], at: int) -> list[int]:
    """Return in how many tensors runs resumed by a state, by a folder, and by a state without buckets are other."""
    run = started(ddp, how)
    trained(run, rank, range(at))
    weights, state = copy.deepcopy(run[0].module.state_dict()), run[1].state_dict()
    whole = trained(run, rank, range(at, at + 3))
    found = []
    for given in (state, {key: value for key, value in state.items() if key != "buckets"}):
        other = started(ddp, how)
        other[0].module.load_state_dict(weights)
        other[1].load_state_dict(given)
        resumed = trained(other, rank, range(at, at + 3))
        found.append(sum(not torch.equal(*pair) for pair in zip(whole, resumed, strict=True)))
    return found


@each("how", [{"density": 0.02}, {"density": 0.02, "scope": "model"}, {"density": 0.05, "wire": "rice+8bit"},
              {"density": 0.02, "precondition": gaussiank.AdamRows(), "scope": "layer", "clip_norm": 0.5},
              {"density": 0.02, "collective": "split", "compressor": "gaussiank"},
              {"density": gaussiank.Warmup((0.05, 1.0), stage_steps=4)},
              {"density": 0.02, "momentum": gaussiank.MomentumCorrection(0.9)}])  # fmt: skip
@each("ddp", [SMALL_BUCKETS, {**SMALL_BUCKETS, "gradient_as_bucket_view": True}])
def test_the_first_step_of_a_resume_takes_the_saved_buckets(
    two_workers: Any, ddp: dict[str, Any], how: dict[str, Any]
) -> None:
    assert [found[0] for found in two_workers.run(differences, ddp, how, 3)] == [0, 0]


@each("ddp", [{}, SMALL_BUCKETS, {"bucket_cap_mb": 0.001}])
def test_a_state_saved_before_ddp_has_rebuilt_its_buckets_names_those_to_come(
    two_workers: Any, ddp: dict[str, Any]
) -> None:
    assert [found[0] for found in two_workers.run(differences, ddp, {"density": 0.02}, 1)] == [0, 0]


def test_without_them_bits_are_others_and_a_state_is_loaded_all_the_same(two_workers: Any) -> None:
    for same, other in two_workers.run(differences, SMALL_BUCKETS, {"density": 0.02}, 3):
        assert same == 0
        assert other > 0
