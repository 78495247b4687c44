from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.each import each

from gaussiank.compressors import DGC, SelectContext
from gaussiank.ops import select_topk

LAWS = ["normal", "laplace", "t3", "uniform", "cauchy", "lognormal", "shifted", "sparse", "integers", "constant"]


def slow(vector: torch.Tensor, k: int, sample: float, step: int) -> list[int]:
    """Follow the rule of the docstring entry by entry."""
    magnitude = np.abs(vector.numpy())
    stride = round(1 / sample)
    sampled = sorted(magnitude[step % stride :: stride], reverse=True)
    threshold = sampled[-(-len(sampled) * k // len(magnitude)) - 1]
    lowered = 0
    while (magnitude >= threshold).sum() < 0.8 * k and lowered < 10:
        threshold = np.float32(threshold * np.float32(0.8))
        lowered += 1
    above = [i for i, value in enumerate(magnitude) if value >= threshold]
    return sorted(sorted(above, key=lambda i: (-magnitude[i], i))[:k])


@each("law", LAWS)
@each(("k", "sample"), [(1, 0.01), (10, 0.01), (100, 0.01), (1000, 0.01), (100, 0.1), (10_000, 0.5)])
def test_follows_its_rule(draw: Callable[..., torch.Tensor], law: str, k: int, sample: float) -> None:
    vector = draw(law, 10_000)
    for step in (0, 1, 63):
        selection = DGC(sample).select(vector, k, SelectContext(step=step))
        assert selection.indices.tolist() == slow(vector, k, sample, step)
        assert len(selection.indices) <= k
        assert selection.hint is None


def test_first_step_needs_no_turn(draw: Callable[..., torch.Tensor]) -> None:
    vector = draw("normal", 10_000)
    assert DGC().select(vector, 100).indices.tolist() == slow(vector, 100, 0.01, step=0)


def test_a_surplus_is_reselected_exactly() -> None:
    vector = torch.linspace(1, 2, 10_000)
    vector[::100] = 0.5  # all that is sampled is small, so the threshold lets everything through
    assert DGC().select(vector, 100).indices.tolist() == select_topk(vector, 100).tolist()


def test_a_few_too_few_are_sent_as_they_are() -> None:
    vector = torch.ones(10_000)
    vector[:85] = 5.0
    vector[100] = 5.0
    assert DGC().select(vector, 100).indices.tolist() == [*range(85), 100]


def test_a_threshold_far_too_high_is_lowered() -> None:
    vector = torch.ones(10_000)
    vector[0] = 3.0  # sampled; 3 x 0.8^5 is the first below 1
    assert DGC().select(vector, 100).indices.tolist() == list(range(100))


def test_the_tenth_lowering_counts() -> None:
    vector = torch.full((10_000,), 0.12)
    vector[0] = 1.0  # sampled; 0.8^9 is 0.134, 0.8^10 is 0.107
    assert DGC().select(vector, 100).indices.tolist() == list(range(100))


@each("numel", [2, 64, 127, 128, 1000, 6399])
def test_a_short_vector_is_sampled_whole(draw: Callable[..., torch.Tensor], numel: int) -> None:
    for seed in range(5):
        vector = draw("normal", numel, seed)
        for k in (1, max(1, numel // 50)):
            assert DGC().select(vector, k).indices.tolist() == select_topk(vector, k).tolist()


@each("sample", [0.0, -0.1, 1.01, float("nan")])
def test_refuses_a_sample_outside_its_range(sample: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"sample must be in (0, 1], got {sample}. DGC samples 0.01.")):
        DGC(sample)
