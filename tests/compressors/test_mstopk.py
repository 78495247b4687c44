from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.each import each

from gaussiank.compressors import MSTopK, SelectContext
from gaussiank.ops import select_topk

Draw = Callable[..., torch.Tensor]
LAWS = ["normal", "laplace", "t3", "uniform", "triangular", "cauchy", "lognormal", "shifted", "sparse", "integers"]


def bounds_of_the_source(vector: torch.Tensor, k: int, samplings: int) -> tuple[int, int, float, float]:
    """Run the paper's algorithm 1 as it stands: (k1, k2, upper threshold, lower threshold)."""
    a = np.abs(vector.double().numpy())
    mean, largest = float(a.mean()), float(a.max())
    low, high, k1, k2, upper, lower = 0.0, 1.0, 0, len(a), math.inf, 0.0
    for _ in range(samplings):
        ratio = low + (high - low) / 2
        threshold = mean + ratio * (largest - mean)
        count = int((a >= threshold).sum())
        if count <= k:
            high = ratio
            if count > k1:
                k1, upper = count, threshold
        else:
            low = ratio
            if count < k2:
                k2, lower = count, threshold
    return k1, k2, upper, lower


@each("samplings", [1, 4, 12])
@each("law", LAWS)
def test_keeps_the_sure_ones_and_a_run_from_between(draw: Draw, law: str, samplings: int) -> None:
    vector = draw(law, 3000).double()  # float64, so that no threshold is rounded
    magnitude = vector.abs()
    for k in (1, 3, 30, 300, 1500, 2999):
        k1, k2, upper, lower = bounds_of_the_source(vector, k, samplings)
        sure = (magnitude >= upper).nonzero().squeeze(1)
        between = ((magnitude < upper) & (magnitude >= lower)).nonzero().squeeze(1)
        assert (len(sure), len(sure) + len(between)) == (k1, k2)
        starts = set()
        for step in range(4):
            chosen = MSTopK(samplings).select(vector, k, SelectContext(step=step)).indices.long()
            assert len(chosen) == k
            assert set(sure.tolist()) <= set(chosen.tolist())
            filled = chosen[magnitude[chosen] < upper]
            if len(filled):
                start = int((between == filled[0]).nonzero())
                starts.add(start)
                assert torch.equal(filled, between[start : start + len(filled)])
        if 0 < k - k1 <= len(between) // 2:
            assert len(starts) > 1  # no entry between is left out for ever


@each("law", ["normal", "laplace", "t3", "uniform"])
def test_enough_samplings_find_topk(draw: Draw, law: str) -> None:
    vector = draw(law, 100_000)
    for k in (10, 100, 1000):
        assert torch.equal(MSTopK(40).select(vector, k).indices, select_topk(vector, k))


@each("value", [0.0, -0.0, 1.0, -3.0, 1e-45, 3e38])
def test_constant_vector_sends_k(value: float) -> None:
    for step in range(3):
        assert len(MSTopK().select(torch.full((1000,), value), 10, SelectContext(step=step)).indices) == 10


def test_sum_beyond_float32_does_not_matter(draw: Draw) -> None:
    vector = draw("uniform", 3000)
    huge = vector / vector.abs().max() * 3.4e38
    assert torch.equal(MSTopK(40).select(huge, 30).indices, select_topk(vector, 30))


@each("samplings", [0, -1])
def test_refuses_no_sampling(samplings: int) -> None:
    message = f"samplings must be at least 1, got {samplings}. The paper's authors take 30."
    with pytest.raises(ValueError, match=re.escape(message)):
        MSTopK(samplings)
