"""What local steps refuse, and what they warn of."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.distributed.test_local_steps import changed, message, net, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gaussiank import LocalSteps

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sync_every": 0}, "sync_every must be at least 1, got 0."),
    ({"fragments": 9}, "fragments must be in [1, 6], at most sync_every and the model's parameters, got 9."),
    ({"sync_every": 4, "fragments": 5}, "fragments must be in [1, 4], at most sync_every"),
    ({"sync_delay": 10}, "sync_delay must be in [0, 9], below sync_every, got 10."),
    ({"mixing": 0.5}, "mixing must be None where sync_delay is 0, got 0.5."),
    ({"mixing": 2.0, "sync_delay": 1}, "mixing must be in [0, 1] or None, got 2.0."),
    ({"density": 0.0}, "density must be in (0, 1], got 0.0."),
    ({"decay": 1.5}, "decay must be in [0, 1], got 1.5."),
    ({"wire": "rice"}, "wire must be index+values"),
    ({"scope": "bucket"}, "scope must be one of fragment, layer, got 'bucket'."),
    ({"buffers": "sum"}, "buffers must be one of average, keep, got 'sum'."),
    ({"on_outlier": "skip"}, "on_outlier must be one of raise, leave_out, clip, got 'skip'."),
    ({"on_outlier": "clip"}, "norm_limit must be given with on_outlier='clip', got None."),
    ({"norm_limit": 0.5}, "norm_limit must be above 1, got 0.5."),
    ({"check_every": -1}, "check_every must be at least 0, got -1."),
    ({"residual_dtype": torch.float16}, "residual_dtype must be torch.float32 or torch.bfloat16, got torch.float16."),
    ({"offload": "disk"}, "offload must be cpu or None, got 'disk'."),
    ({"outer_optimizer": 3}, "outer_optimizer must make a torch.optim.Optimizer, got int."),
]


def refusals(rank: int, world_size: int) -> list[str]:
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    said = [message(lambda settings=settings: LocalSteps(model, inner, **settings)) for settings, _ in REFUSED]
    said.append(message(lambda: LocalSteps(model, inner, outer_optimizer=inner)))  # type: ignore[arg-type]
    said.append(message(lambda: LocalSteps(DistributedDataParallel(net()), inner)))
    said.append(message(lambda: LocalSteps(net(), inner)))
    said.append(message(lambda: LocalSteps(model, inner, sync_every=30 + rank)))
    other = net() if rank else nn.Linear(20, 3)
    said.append(message(lambda: LocalSteps(other, torch.optim.SGD(other.parameters(), lr=0.1))))
    return said


def test_what_does_not_go_is_refused_in_a_sentence(two_workers: Any) -> None:
    for said in two_workers.run(refusals):
        for text, (settings, expected) in zip(said, REFUSED, strict=False):
            assert text.startswith(expected), settings
        assert "outer_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=...)" in said[-5]
        assert said[-4].startswith("model must not be under DistributedDataParallel over the workers of LocalSteps'")
        assert said[-3].startswith("optimizer must step over every trained parameter, got one without 0.weight.")
        assert said[-2].startswith("sync_every must be the same on every worker, got '30' on rank 0 and '31' on rank 1")
        assert said[-1].startswith("model must be the same on every worker, got '2 trained parameters of 63 entries")


def test_a_model_that_changes_in_mid_run_is_refused(two_workers: Any) -> None:
    for frozen, grown, replaced, regrouped in two_workers.run(changed):
        assert frozen.startswith(
            "parameter 0.weight must stay as it was when LocalSteps was made, got it frozen, or gone"
        )
        assert grown.startswith("parameter 4.bias must stay as it was when LocalSteps was made, got a new one")
        assert "got another one in its place" in replaced
        assert regrouped.startswith("param_groups of the optimizer must hold the parameters that they held")


def silent(rank: int, world_size: int) -> str:
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    local = LocalSteps(model, inner, sync_every=2, sync_delay=1, timeout_s=1)
    said = ""
    for _ in range(1 if rank else 4):
        try:
            local.step()
        except RuntimeError as error:
            said = str(error)
            break
    dist.barrier()
    return said


def test_a_worker_that_falls_silent_is_named(two_workers: Any) -> None:
    said, _ = two_workers.run(silent)
    assert "rank 0 lost the note of fragment 0 in step 2 after" in said
    assert "Nothing was heard from rank 1." in said


def tells_of_forgotten_calls(rank: int, world_size: int) -> None:
    """Weights loaded after LocalSteps was made, and a forgotten local.step(), are told of before anything is lost."""
    model = nn.Linear(20, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    local = LocalSteps(model, optimizer, sync_every=2)
    model.load_state_dict({name: one + 1 for name, one in model.state_dict().items()})
    with pytest.raises(RuntimeError, match="model must begin at the weights that it had when LocalSteps was made"):
        train(model, optimizer, rank, 0)
    with local.at_agreed():
        held = {name: one.clone() for name, one in model.state_dict().items()}
    model.load_state_dict(held)
    train(model, optimizer, rank, 0)
    train(model, optimizer, rank, 1)
    with pytest.warns(UserWarning, match=r"local.step\(\) must follow each step of the optimizer, got 3 without it"):
        train(model, optimizer, rank, 2)
    with pytest.raises(RuntimeError, match="got 3 steps of the optimizer since"):
        local.finish()
    local.step()
    local.finish()
    model = nn.Linear(20, 1)
    wrapped = [DistributedDataParallel(model)]
    for inside in (True, False):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        local = LocalSteps(model, optimizer, sync_every=2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(model, optimizer, rank, 0)
        assert ["is inside a DistributedDataParallel" in str(one.message) for one in caught] == [True] * inside
        wrapped.clear()


def test_forgotten_calls_are_told_of(two_workers: Any) -> None:
    two_workers.run(tells_of_forgotten_calls)
