from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from tests.each import each

from gaussiank.compressors import SelectContext, SIDCo
from gaussiank.compressors.sidco import _gamma_quantile

Draw = Callable[..., torch.Tensor]
MODES = ["exponential", "gammapareto", "pareto"]


def kept_over_k(compressor: SIDCo, vector: torch.Tensor, k: int) -> float:
    return compressor.select(vector, k).indices.numel() / k


def run(compressor: SIDCo, vector: torch.Tensor, k: int, turns: int) -> list[tuple[int, float]]:
    """Select again and again, handing the hint on; returns (stages at the next turn, kept / k)."""
    hint, seen = None, []
    for step in range(turns):
        indices, hint = compressor.select(vector, k, SelectContext(step=step, hint=hint))
        assert hint is not None
        seen.append((int(hint[0]), indices.numel() / k))
    return seen


# ---------------------------------------------------------------------- thresholds


def test_one_exponential_stage_is_the_papers_formula(draw: Draw) -> None:
    vector = draw("normal", 30_000).double()
    for k in (30, 300, 3000, 30_000):
        threshold = -float(vector.abs().mean()) * math.log(k / 30_000)
        chosen = SIDCo(stages=1).select(vector, k).indices
        assert chosen.tolist() == (vector.abs() > threshold).nonzero().squeeze(1).tolist()


def test_two_exponential_stages_fit_the_excess(draw: Draw) -> None:
    vector, k = draw("laplace", 30_000).double(), 300
    magnitude = vector.abs()
    tail = magnitude[magnitude > -float(magnitude.mean()) * math.log(0.25)]
    threshold = float(tail.min()) - float((tail - tail.min()).mean()) * math.log(k / 30_000 / 0.25)
    chosen = SIDCo(stages=2).select(vector, k).indices
    assert chosen.tolist() == (magnitude > threshold).nonzero().squeeze(1).tolist()


def test_one_pareto_stage_is_the_papers_formula(draw: Draw) -> None:
    vector, k = draw("t3", 30_000).double(), 300
    variance, mean = (float(m) for m in torch.var_mean(vector.abs()))
    shape, scale = 0.5 * (mean**2 / variance - 1), 0.5 * mean * (mean**2 / variance + 1)
    threshold = scale * (1 - (k / 30_000) ** shape) / shape
    chosen = SIDCo("pareto", stages=1).select(vector, k).indices
    assert chosen.tolist() == (vector.abs() > threshold).nonzero().squeeze(1).tolist()


@each("shape", [0.02, 0.5, 1.0, 2.3, 40.0, 5000.0])
@each("share", [0.9, 0.25, 0.01, 1e-6])
def test_gamma_quantile_inverts_the_law(shape: float, share: float) -> None:
    value = _gamma_quantile(shape, share)
    near = (2 * shape - 4 * math.log(share)) / 64**4
    around = torch.tensor([max(value - near, 0.0), value + near], dtype=torch.float64)
    more, less = torch.special.gammaincc(torch.full_like(around, shape), around).tolist()
    assert less <= share <= more
    if shape == 1.0:
        assert value == pytest.approx(-math.log(share), abs=near)


@each("mode", MODES)
@each("stages", [1, 2, 4])
def test_finds_k_where_the_law_fits(draw: Draw, mode: str, stages: int) -> None:
    vector = draw("laplace", 1_000_000)  # its magnitudes are exponential, a member of all three families
    for k in (10_000, 1000):
        assert kept_over_k(SIDCo(mode, stages), vector, k) == pytest.approx(1, abs=0.1)  # type: ignore[arg-type]


def test_pareto_mode_finds_k_of_a_uniform_law(draw: Draw) -> None:
    vector = draw("uniform", 1_000_000)
    assert kept_over_k(SIDCo("pareto", 1), vector, 10_000) == pytest.approx(1, abs=0.1)
    assert kept_over_k(SIDCo("exponential", 1), vector, 10_000) == 0


@each("mode", MODES)
@each("scale", [1e-40, 1e-20, 1e18, 1e37])
def test_scale_does_not_matter(draw: Draw, mode: str, scale: float) -> None:
    vector = draw("normal", 30_000).double()
    plain = SIDCo(mode, 3).select(vector, 300).indices.numel()  # type: ignore[arg-type]
    scaled = SIDCo(mode, 3).select((vector * scale).float(), 300).indices.numel()  # type: ignore[arg-type]
    assert scaled == pytest.approx(plain, rel=0.02)


@each("mode", MODES)
@each("value", [0.0, 1.0, -3.0, 1e-45, 3e38])
def test_of_equal_magnitudes_nothing_is_above(mode: str, value: float) -> None:
    for stages in (1, 3):
        assert SIDCo(mode, stages).select(torch.full((1000,), value), 10).indices.numel() == 0  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the controller


def test_controller_adds_a_stage_after_five_lean_turns(draw: Draw) -> None:
    vector = draw("normal", 100_000)
    seen = run(SIDCo(), vector, 100, 30)
    assert [stages for stages, _ in seen] == [1] * 4 + [2] * 5 + [3] * 5 + [4] * 16
    assert seen[0][1] < 0.1
    assert seen[-1][1] == pytest.approx(1, abs=0.2)


def test_controller_removes_a_stage_after_five_rich_turns(draw: Draw) -> None:
    vector, hint = draw("uniform", 100_000), torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64)
    for turns in range(1, 5):
        indices, hint = SIDCo().select(vector, 1000, SelectContext(hint=hint))  # type: ignore[assignment]
        assert hint.tolist() == pytest.approx([5, turns, turns * indices.numel() / 1000])
        assert indices.numel() > 1200
    assert SIDCo().select(vector, 1000, SelectContext(hint=hint)).hint.tolist() == [4, 0, 0]  # type: ignore[union-attr]


def test_controller_stays_at_one_stage_where_that_is_too_rich(draw: Draw) -> None:
    seen = run(SIDCo(), draw("t3", 100_000), 100, 20)
    assert {stages for stages, _ in seen} == {1}
    assert seen[-1][1] > 3  # the paper's controller has no way out of a heavy tail


def test_controller_stays_within_log2_of_the_compression() -> None:
    seen = run(SIDCo(), torch.ones(1000), 100, 40)  # sends nothing, so it always wants one stage more
    assert seen[-1] == (4, 0.0)
    lean = SelectContext(hint=torch.tensor([9.0, 0.0, 0.0], dtype=torch.float64))
    vector = torch.linspace(0, 1, 1000)
    several, one = SIDCo().select(vector, 500, lean).indices, SIDCo(stages=1).select(vector, 500).indices
    assert torch.equal(several, one)  # a density of a half has room for one stage


def test_fixed_stages_need_no_state(draw: Draw) -> None:
    vector = draw("normal", 3000)
    assert SIDCo(stages=2).select(vector, 30).hint is None
    assert SIDCo().capacity(30, 3000) is None


# ---------------------------------------------------------------------- settings


def test_refuses_unknown_settings() -> None:
    message = "mode must be one of exponential, gammapareto, pareto, got 'normal'. Choose one of them."
    with pytest.raises(ValueError, match=re.escape(message)):
        SIDCo("normal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape("stages must be at least 0, got -1. With 0 the controller choo")):
        SIDCo(stages=-1)
