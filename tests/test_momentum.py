from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from tests.each import each

from gaussiank.layout import Layout
from gaussiank.momentum import LocalClip, MomentumCorrection

LAYOUT = Layout(("weight", "empty", "bias"), (30, 0, 10))


@each("world_size", [1, 4, 7])
@each("scale", [0.01, 1.0, 100.0])
def test_clips_each_parameter_to_its_share_of_the_norm(rng: torch.Generator, world_size: int, scale: float) -> None:
    grad = torch.randn(40, generator=rng) * scale
    grad[30:] *= 50
    before = grad.clone()
    clipped = MomentumCorrection(clip_norm=2.0).clip(grad, LAYOUT, world_size)
    expected = before.numpy().astype(np.float64)
    for place in (slice(0, 30), slice(30, 40)):
        norm = math.sqrt((expected[place] ** 2).sum())
        expected[place] *= min(1.0, 2.0 / math.sqrt(world_size) / norm)
    np.testing.assert_allclose(clipped.numpy(), expected, rtol=1e-6)
    assert torch.equal(grad, before)


def test_within_the_norm_nothing_changes(rng: torch.Generator) -> None:
    grad = torch.randn(40, generator=rng)
    assert torch.equal(MomentumCorrection(clip_norm=1e6).clip(grad, LAYOUT, 4), grad)


def test_without_a_norm_it_is_a_copy(rng: torch.Generator) -> None:
    grad = torch.randn(40, generator=rng)
    copy = MomentumCorrection().clip(grad, LAYOUT, 4)
    assert torch.equal(copy, grad)
    assert copy.data_ptr() != grad.data_ptr()


def test_zero_gradient_stays_zero() -> None:
    assert MomentumCorrection(clip_norm=1.0).clip(torch.zeros(40), LAYOUT, 1).tolist() == [0.0] * 40


@each(
    ("dtype", "widened"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_clips_in_the_dtype_of_the_residual(dtype: torch.dtype, widened: torch.dtype) -> None:
    grad = torch.tensor([3.0, 4.0], dtype=dtype)
    clipped = MomentumCorrection(clip_norm=1.0).clip(grad, Layout(("w",), (2,)), 1)
    assert clipped.dtype == widened
    torch.testing.assert_close(clipped, torch.tensor([0.6, 0.8], dtype=widened))


@each("bad", [math.inf, -math.inf, math.nan])
def test_infinity_and_nan_stay_visible(bad: float) -> None:
    grad = torch.tensor([1.0, bad, 2.0, 3.0])
    clipped = MomentumCorrection(clip_norm=1.0).clip(grad, Layout(("a", "b"), (2, 2)), 1)
    assert not math.isfinite(clipped[1])
    assert torch.linalg.vector_norm(clipped[2:]) == pytest.approx(1.0)


def test_clips_a_gradient_whose_squares_overflow() -> None:
    clipped = MomentumCorrection(clip_norm=1.0).clip(torch.tensor([3e30, 4e30]), Layout(("w",), (2,)), 1)
    torch.testing.assert_close(clipped, torch.tensor([0.6, 0.8]))


def test_gradient_whose_squares_underflow_is_left_alone() -> None:
    grad = torch.full((4,), 1e-30)
    assert torch.equal(MomentumCorrection(clip_norm=1.0).clip(grad, Layout(("w",), (4,)), 1), grad)


@each("momentum", [-0.1, 1.0, 1.5, math.nan])
def test_refuses_momentum_out_of_range(momentum: float) -> None:
    message = f"momentum must be in [0, 1), got {momentum}. 0.9 is usual."
    with pytest.raises(ValueError, match=re.escape(message)):
        MomentumCorrection(momentum)


@each("clip_norm", [0.0, -1.0, math.nan])
def test_refuses_norm_that_clips_all(clip_norm: float) -> None:
    message = f"clip_norm must be above 0, got {clip_norm}. Leave it out to clip nothing."
    with pytest.raises(ValueError, match=re.escape(message)):
        MomentumCorrection(clip_norm=clip_norm)


def test_frozen() -> None:
    with pytest.raises(AttributeError, match="cannot assign to field 'momentum'"):
        MomentumCorrection().momentum = 0.5  # type: ignore[misc]


def test_local_clipping_gives_each_vector_its_share_and_leaves_what_is_not_finite() -> None:
    torch.manual_seed(0)
    layout = Layout(("a", "b", "c"), (30, 5, 0))
    for scale in (1.0, 1024.0):
        for size in (1e-3, 1.0, 1e25):
            grad = size * scale * torch.randn(35)
            whole, layers, halves = grad.clone(), grad.clone(), list(grad.clone().split([20, 15]))
            LocalClip(0.5, parameters=3).apply(layout, [whole], scale)
            LocalClip(0.5, parameters=3, per_layer=True).apply(layout, [layers], scale)
            LocalClip(0.5, parameters=3).apply(layout, halves, scale)
            assert whole.norm() <= 0.5 * scale * 1.0001
            assert torch.allclose(torch.cat(halves), whole)
            for _, place in layout.slices():
                assert layers[place].norm() <= 0.5 * scale / 3**0.5 * 1.0001
            if size < 1:
                assert torch.equal(whole, grad)
                assert torch.equal(layers, grad)
            else:
                torch.testing.assert_close(whole / whole[0], grad / grad[0])
                assert whole.double().norm().item() == pytest.approx(0.5 * scale)
    for spoiled in (float("inf"), float("nan")):
        grad = torch.tensor([spoiled, 3.0])
        LocalClip(0.5, parameters=1).apply(Layout(("a",), (2,)), [grad])
        assert grad[1] == 3.0
        assert not torch.isfinite(grad[0])
    with pytest.raises(ValueError, match="clip_norm must be above 0 and finite, got 0"):
        LocalClip(0.0, parameters=1)
