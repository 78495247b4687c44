from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.each import each

from gaussiank.compressors import (
    COMPRESSORS,
    Capped,
    Compressor,
    Dense,
    GaussianK,
    RandomK,
    SelectContext,
    Selection,
    TopK,
)
from gaussiank.layout import Layout
from gaussiank.ops import select_topk
from gaussiank.reducer import Selector, require_scope

LAYOUT = Layout(("weight", "empty", "bias", "head"), (600, 0, 5, 395))
SEGMENTS = {"weight": slice(0, 600), "bias": slice(600, 605), "head": slice(605, 1000)}


@dataclass(frozen=True)
class Recorder(Compressor):
    """Chooses the first k, and notes what it was called with."""

    calls: list[tuple[torch.Tensor, int, SelectContext]] = field(default_factory=list)

    def select(self, accumulated: torch.Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        assert turn is not None
        self.calls.append((accumulated.clone(), k, turn))
        hint = torch.tensor(float(k)) if turn.hint is None else turn.hint + 1
        return Selection(torch.arange(k, dtype=torch.int32), hint)


@each(("density", "whole", "layers"), [(0.01, 10, 6 + 1 + 4), (0.001, 1, 3), (1.0, 1000, 1000)])
def test_k_is_counted_once_or_for_each_parameter(density: float, whole: int, layers: int) -> None:
    assert Selector(TopK(), per_layer=False, rank=0).asked(LAYOUT, density).k == whole
    assert Selector(TopK(), per_layer=True, rank=0).asked(LAYOUT, density).k == layers


def test_capacity_adds_up_over_parameters() -> None:
    assert Selector(TopK(), per_layer=True, rank=0).asked(LAYOUT, 0.01).capacity == 11
    assert Selector(Dense(), per_layer=True, rank=0).asked(LAYOUT, 0.01).capacity == 1000
    assert Selector(GaussianK(), per_layer=False, rank=0).asked(LAYOUT, 0.1).capacity == 133
    assert Selector(GaussianK(), per_layer=True, rank=0).asked(LAYOUT, 0.1).capacity == 80 + 1 + 53
    assert Selector(GaussianK("published"), per_layer=True, rank=0).asked(LAYOUT, 0.1).capacity is None
    assert Selector(Capped(GaussianK("published"), limit=7), per_layer=False, rank=0).asked(LAYOUT, 0.1).capacity == 7


def test_whole_vector_is_one_selection(rng: torch.Generator) -> None:
    vector = torch.randn(1000, generator=rng)
    sent = Selector(TopK(), per_layer=False, rank=0).select(LAYOUT, vector, 0.05, step=0)
    assert sent.indices.tolist() == select_topk(vector, 50).tolist()
    assert torch.equal(sent.values, vector[sent.indices])
    assert sent.numel == 1000


def test_each_parameter_is_a_selection_of_its_own(rng: torch.Generator) -> None:
    vector = torch.randn(1000, generator=rng)
    vector[:600] *= 100
    sent = Selector(TopK(), per_layer=True, rank=0).select(LAYOUT, vector, 0.05, step=0).check()
    expected: list[int] = []
    for place, k in zip(SEGMENTS.values(), (30, 1, 20), strict=True):
        expected += (select_topk(vector[place], k) + place.start).tolist()
    assert sent.indices.tolist() == expected
    assert sent.indices.dtype == torch.int32
    assert torch.equal(sent.values, vector[sent.indices])


@each("per_layer", [False, True], ids=["whole", "per layer"])
def test_turn_tells_step_rank_part_and_hint(rng: torch.Generator, per_layer: bool) -> None:
    recorder = Recorder()
    selector = Selector(recorder, per_layer=per_layer, rank=3)
    vector = torch.randn(1000, generator=rng)
    places = SEGMENTS if per_layer else {"weight..head": slice(0, 1000)}
    for step in (7, 8, 9):
        recorder.calls.clear()
        selector.select(LAYOUT, vector, 0.1, step)
        assert [k for _, k, _ in recorder.calls] == ([60, 1, 40] if per_layer else [100])  # round half to even: 39.5
        for (segment, k, turn), (name, place) in zip(recorder.calls, places.items(), strict=True):
            assert torch.equal(segment, vector[place])
            assert (turn.step, turn.rank, turn.part) == (step, 3, zlib.crc32(name.encode()))
            assert (turn.hint is None) if step == 7 else (turn.hint == k + step - 8)
    assert {name: float(hint) for name, hint in selector.hints.items()} == {
        name: k + 2.0 for (_, k, _), name in zip(recorder.calls, places, strict=True)
    }


def test_hints_of_a_threshold_search_are_saved_and_loaded(rng: torch.Generator) -> None:
    layout = Layout(("w",), (20_000,))
    vector = torch.randn(20_000, generator=rng)
    selector = Selector(GaussianK(), per_layer=False, rank=0)
    selector.select(layout, vector, 0.01, step=0)
    (hint,) = selector.hints.values()
    assert int((vector.abs() > hint).sum()) == selector.select(layout, vector, 0.01, step=1).kept
    resumed = Selector(GaussianK(), per_layer=False, rank=0)
    saved = {name: hint.clone() for name, hint in selector.hints.items()}
    resumed.load_hints(saved)
    assert resumed.hints == selector.hints
    for hint in saved.values():
        hint.fill_(math.nan)
    assert resumed.hints == selector.hints


def test_selectors_do_not_share_hints() -> None:
    one, two = (Selector(TopK(), per_layer=False, rank=0) for _ in range(2))
    one.hints["w"] = torch.tensor(1.0)
    assert two.hints == {}


def test_random_draws_of_parameters_of_one_length_differ() -> None:
    layout = Layout(("a", "b"), (500, 500))
    sent = Selector(RandomK(), per_layer=True, rank=0).select(layout, torch.ones(1000), 0.1, step=0)
    first, second = sent.indices[:50].tolist(), (sent.indices[50:] - 500).tolist()
    assert first != second


# ---------------------------------------------------------------------- infinities and NaN


@each("bad", [math.inf, -math.inf, math.nan])
@each("per_layer", [False, True], ids=["whole", "per layer"])
@each("compressor", [GaussianK(), GaussianK("published"), RandomK(), Capped(TopK(), limit=2)], ids=repr)
def test_what_is_not_finite_is_all_that_is_sent(
    rng: torch.Generator, compressor: Compressor, per_layer: bool, bad: float
) -> None:
    vector = torch.randn(1000, generator=rng)
    vector[[602, 999]] = bad
    selector = Selector(compressor, per_layer=per_layer, rank=0)
    sent = selector.select(LAYOUT, vector, 0.1, step=0)
    assert sent.indices.tolist() == [602, 999]
    torch.testing.assert_close(sent.values, torch.tensor([bad, bad]), equal_nan=True)
    assert selector.hints == {}  # such a step teaches nothing


def test_what_is_not_finite_is_sent_as_far_as_it_fits() -> None:
    vector = torch.full((1000,), math.nan)
    sent = Selector(RandomK(), per_layer=False, rank=0).select(LAYOUT, vector, 0.01, step=0)
    assert sent.indices.tolist() == list(range(10))
    assert bool(sent.values.isnan().all())


def test_topk_sends_what_is_not_finite_by_itself(rng: torch.Generator) -> None:
    vector = torch.randn(1000, generator=rng)
    vector[601] = math.nan
    sent = Selector(TopK(), per_layer=True, rank=0).select(LAYOUT, vector, 0.001, step=0)
    assert sent.kept == 3
    assert sent.indices[1] == 601


# ---------------------------------------------------------------------- scope


@each("scope", ["bucket", "layer", "model"])
def test_known_scopes(scope: str) -> None:
    assert require_scope(scope) is None  # type: ignore[func-returns-value]


@each("scope", ["layers", "", "Model", None])
def test_refuses_unknown_scope(scope: Any) -> None:
    message = f"scope must be one of bucket, layer, model, got {scope!r}. Choose one of them."
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        require_scope(scope)


@each("per_layer", [False, True], ids=["whole", "per layer"])
@each("name", COMPRESSORS)
def test_taking_is_adding_selecting_and_removing(draw: Callable[..., torch.Tensor], name: str, per_layer: bool) -> None:
    layout = Layout(("a", "b", "c"), (5000, 3, 997))
    two_steps, fused = (Selector(COMPRESSORS[name](), per_layer=per_layer, rank=1) for _ in range(2))
    residual = draw("laplace", layout.numel, seed=0)
    for step in range(5):
        grad = draw("normal", layout.numel, seed=step + 1)
        accumulated, out = residual + grad, torch.empty(layout.numel)
        chosen = two_steps.select(layout, accumulated, 0.02, step)
        taken = fused.take(layout, grad, residual, out, 0.02, step).check()
        assert torch.equal(taken.indices, chosen.indices)
        assert torch.equal(taken.values, chosen.values)
        accumulated[chosen.indices] = 0
        assert torch.equal(out, accumulated)
        residual = out


@each("per_layer", [False, True])
def test_a_shared_draw_is_what_every_worker_selects(per_layer: bool) -> None:
    layout, vector = Layout(("one", "two"), (60, 40)), torch.randn(100)
    draws = [Selector(RandomK(shared=True), per_layer=per_layer, rank=rank) for rank in range(2)]
    for step in range(2):
        shared = draws[0].shared(layout, 0.1, step, 7, vector.device)
        assert shared is not None
        for selector in draws:
            assert torch.equal(selector.select(layout, vector, 0.1, step).indices, shared.draw(100, 10))
    assert Selector(RandomK(), per_layer=per_layer, rank=0).shared(layout, 0.1, 0, 7, vector.device) is None
    with pytest.raises(RuntimeError, match=r"^compressor must draw the same indices on every worker, got TopK\(\)\."):
        TopK().drawn(100, 10, SelectContext(), vector.device)
