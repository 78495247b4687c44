from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from tests.each import each

from gaussiank.compressors import TrimmedTopK
from gaussiank.ops import select_topk

LAWS = ["normal", "laplace", "t3", "uniform", "triangular", "cauchy", "lognormal", "shifted", "sparse", "integers"]


@each("step", [0.07, 0.2, 0.3, 0.5, 0.9])
@each("law", [*LAWS, "constant"])
def test_is_topk_itself(draw: Callable[..., torch.Tensor], law: str, step: float) -> None:
    vector = draw(law, 3000)
    for k in (1, 3, 30, 300, 1500, 2999, 3000):
        chosen = TrimmedTopK(step).select(vector, k).indices
        assert chosen.dtype == torch.int32
        assert torch.equal(chosen, select_topk(vector, k))


@each("value", [0.0, -0.0, 1.0, -3.0, 1e-45, 3e38])
def test_constant_vector_ends(value: float) -> None:
    assert TrimmedTopK().select(torch.full((1000,), value), 10).indices.tolist() == list(range(10))


def test_exact_selection_sees_only_what_was_trimmed(
    draw: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counting(vector: torch.Tensor, k: int) -> torch.Tensor:
        seen.append(vector.numel())
        return select_topk(vector, k)

    monkeypatch.setattr("gaussiank.ops.select_topk", counting)
    vector = draw("laplace", 100_000)
    TrimmedTopK().select(vector, 100)
    mean, top = float(vector.abs().mean()), float(vector.abs().max())
    above = [int((vector.abs() > mean + ratio * (top - mean)).sum()) for ratio in (0.8, 0.6, 0.4, 0.2)]
    assert seen == [next(count for count in above if count >= 100)]


@each("step", [0.0, 1.0, -0.2, float("nan")])
def test_refuses_a_step_outside_its_range(step: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"step must be in (0, 1), got {step}. RedSync uses 0.2.")):
        TrimmedTopK(step)
