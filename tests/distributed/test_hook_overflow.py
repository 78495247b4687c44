"""Infinities, overflows and a scale that changes: what DDP's hook makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.distributed.test_hook import SHAPES, SMALL_BUCKETS, Given, Totals, assert_nothing_lost, feed, totals
from tests.each import each
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank


def overflowing(rank: int, world_size: int, bad: float, how: dict[str, Any]) -> tuple[bool, bool, bool]:
    model = DDP(Given(), **SMALL_BUCKETS)
    compression = gaussiank.compress(model, **{"density": 0.02, **how})
    for step in range(3):
        model.zero_grad()
        model(feed(rank, step)).backward()
    before = compression.state_dict()["feedback"]
    model.zero_grad()
    fed = feed(rank, 3)
    if rank == world_size - 1:
        fed["second"][5] = bad
    model(fed).backward()
    seen = not bool(model.module.second.grad.isfinite().all())  # type: ignore[union-attr]
    after = compression.state_dict()["feedback"]
    same = all(
        torch.equal(before[kind][name], after[kind][name]) for kind in ("residual", "velocity") for name in before[kind]
    )
    model.zero_grad()
    model(feed(rank, 4)).backward()
    recovered = all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    return seen, same, recovered


@each("bad", [float("nan"), float("inf"), float("-inf")])
@each(
    "how",
    [{}, {"compressor": "gaussiank"}, {"compressor": "randomk"}, {"scope": "model"},
     {"momentum": gaussiank.MomentumCorrection()}, {"density": gaussiank.Warmup((0.02, 1.0), stage_steps=3)}],
    ids=["topk", "gaussiank", "randomk", "model", "momentum", "dense step"],
)  # fmt: skip
def test_nonfinite_reaches_all_and_enters_no_residual(workers: Any, bad: float, how: dict[str, Any]) -> None:
    assert workers.run(overflowing, bad, how) == [(True, True, True)] * workers.world_size


def overflow_in_the_mean(rank: int, world_size: int) -> tuple[bool, bool]:
    model = DDP(Given(torch.float16))
    compression = gaussiank.compress(model, density=0.01)
    fed = feed(0, 0, torch.float16)  # the same on every worker, so that all choose the same entries
    fed["third"][:] = 65_000  # float16 holds it, but not twice as much
    model(fed).backward()
    before = compression.feedback.residual("third")
    model.zero_grad()
    model(fed).backward()
    assert model.module.third.grad is not None
    assert before.any()
    return bool(model.module.third.grad.isinf().any()), torch.equal(before, compression.feedback.residual("third"))


def test_overflow_of_a_half_precision_mean_changes_no_residual(workers: Any) -> None:
    assert workers.run(overflow_in_the_mean) == [(True, True)] * workers.world_size


def refusing(rank: int, world_size: int, scope: str, density: float) -> str:
    model = DDP(Given(), **SMALL_BUCKETS)
    gaussiank.compress(model, density=density, scope=scope, on_nonfinite="raise")  # type: ignore[arg-type]
    fed = feed(rank, 0)
    if rank == 0:
        fed["third"][7] = float("nan")
    try:
        model(fed).backward()
    except RuntimeError as error:
        return str(error)
    return "no error"


@each(("scope", "density"), [("bucket", 0.02), ("model", 0.02), ("bucket", 1.0)])
def test_raise_names_the_parameter_on_every_worker(workers: Any, scope: str, density: float) -> None:
    for message in workers.run(refusing, scope, density):
        assert "gradient of third must be finite, got infinity or NaN on some worker in step 0." in message
        assert "cast" not in message  # what torch says of an error that was given to it as a result


def under_a_scaler(rank: int, world_size: int, how: dict[str, Any]) -> tuple[Totals, list[float], bool]:
    """Train with a scale that grows every second step and falls at an overflow; returns everything unscaled."""
    model = DDP(Given(), **SMALL_BUCKETS)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    compression = gaussiank.compress(model, density=0.02, scaler=scaler, **how)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    grads = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    scales = []
    for step in range(7):
        optimizer.zero_grad()
        fed = feed(rank, step)
        if step == 4 and rank == 0:
            fed["third"][5] = float("inf")
        scales.append(scaler.get_scale())
        scaler.scale(model(fed)).backward()
        scaler.step(optimizer)
        scaler.update()
        for name in SHAPES:
            grads[name] += 0 if step == 4 else fed[name]  # the step that overflowed is skipped, with its gradient
    applied = {name: -parameter.detach() for name, parameter in model.module.named_parameters()}
    result = totals(compression, applied, grads)
    same_scale = compression.state_dict()["scale"] == scales[-1]
    return {name: (kept / scales[-1], *rest) for name, (kept, *rest) in result.items()}, scales, same_scale  # type: ignore[misc]


@pytest.mark.parametrize("how", [{}, {"momentum": gaussiank.MomentumCorrection(0.0)}], ids=["plain", "velocity"])
def test_residuals_follow_the_scale_of_a_grad_scaler(workers: Any, how: dict[str, Any]) -> None:
    results = workers.run(under_a_scaler, how)
    assert_nothing_lost([result for result, _, _ in results])
    for _, scales, same_scale in results:
        assert scales == [2.0**10, 2.0**10, 2.0**11, 2.0**11, 2.0**12, 2.0**11, 2.0**11]
        assert same_scale
