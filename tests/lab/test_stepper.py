"""One optimizer step: precision, accumulation, clipping after the exchange, averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.each import each

from gaussiank_lab.data import Batch, Batches
from gaussiank_lab.train.config import TrainConfig
from gaussiank_lab.train.step import Stepper


@pytest.fixture(autouse=True)
def _world_of_one(tmp_path: Path) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def stepper(method: str = "topk", **settings: Any) -> Stepper:
    config = TrainConfig(model="fnn3", methods=(method,), workers=1, density=0.01, **settings)
    return Stepper(config, method, config.load_data(), epoch_steps=10)


def batches(count: int, size: int = 8) -> list[Batch]:
    data = TrainConfig(model="fnn3").load_data()
    dealt = Batches(data.train, size, rank=0, world_size=1, seed=0).epoch(0)
    return [next(dealt) for _ in range(count)]


def weights(stepper: Stepper) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in stepper.model.parameters()])


def averaged(stepper: Stepper) -> torch.Tensor:
    assert stepper.average is not None
    return torch.cat([parameter.detach().flatten() for parameter in stepper.average.module.parameters()])


def residuals(stepper: Stepper) -> torch.Tensor:
    return torch.cat(list(stepper.own_state()["feedback"]["residual"].values()))


def test_a_skipped_step_loses_nothing() -> None:
    taken = stepper(precision="fp16", momentum_correction=True, ema=0.5)
    first, second, third = batches(3)
    taken.take(0.02, [first])
    scale = taken.precision.scaler.get_scale()
    scaler = taken.precision.scaler
    before, held, average = weights(taken), residuals(taken) / scale, averaged(taken)
    scaler.update(2.0**40)  # float16 ends at 65504: the next gradient is infinite
    taken.take(0.02, [second])
    assert taken.skipped == 1
    assert torch.equal(weights(taken), before)
    assert torch.equal(averaged(taken), average)
    scaler.update(scale)
    taken.take(0.02, [third])
    straight = stepper(precision="fp16", momentum_correction=True, ema=0.5)
    for batch in (first, third):
        straight.take(0.02, [batch])
    assert torch.equal(weights(taken), weights(straight))  # as if the skipped batch had never been
    assert torch.equal(residuals(taken), residuals(straight))
    assert held.abs().sum() > 0


def test_accumulated_batches_count_as_one() -> None:
    halves, whole = stepper("dense", accumulate=2), stepper("dense")
    two = batches(2)
    joined = Batch(
        tuple(torch.cat(parts) for parts in zip(*(b.inputs for b in two), strict=True)),
        tuple(torch.cat(parts) for parts in zip(*(b.targets for b in two), strict=True)),
    )
    before = weights(halves)
    loss = halves.take(0.1, two).loss
    assert loss == pytest.approx(whole.take(0.1, [joined]).loss, rel=1e-6)
    torch.testing.assert_close(weights(halves) - before, weights(whole) - before, rtol=1e-4, atol=1e-7)


@each("settings", [{}, {"clip_grad": 1e9}], ids=["in backward", "after clipping"])
def test_accumulated_gradients_are_exchanged_once(settings: dict[str, Any]) -> None:
    taken = stepper(accumulate=3, **settings)
    taken.take(0.1, batches(3))
    assert (taken.metrics.step, taken.metrics.numel) == (0, 199_210)
    assert taken.own_state()["step"] == 1


@each("precision", ["fp32", "fp16"])
def test_the_mean_is_clipped_after_the_exchange(precision: str) -> None:
    taken = stepper(clip_mean=0.01, precision=precision, momentum=0.0)
    before = weights(taken)
    taken.take(1.0, batches(1))
    assert float((weights(taken) - before).norm()) == pytest.approx(0.01, rel=1e-3)
    assert residuals(taken).norm() / taken.precision.scaler.get_scale() > 0.1  # what is kept is not clipped


def test_bf16_computes_less_exactly_and_trains_float32_weights() -> None:
    exact, rough = stepper("dense"), stepper("dense", precision="bf16")
    for batch in batches(3):
        one, other = exact.take(0.05, [batch]).loss, rough.take(0.05, [batch]).loss
    assert one != other
    assert one == pytest.approx(other, rel=0.02)
    assert weights(rough).dtype == torch.float32


def test_the_average_follows_the_weights() -> None:
    taken = stepper("dense", ema=0.75)
    expected = weights(taken)
    for batch in batches(3):
        taken.take(0.1, [batch])
        expected = expected.lerp(weights(taken), 0.25)
    assert torch.equal(averaged(taken), expected)
