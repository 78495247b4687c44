from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from tests.each import each

from gaussiank import ops
from gaussiank.compressors import GaussianK, SelectContext
from gaussiank.ops import select_topk

LAWS = ["normal", "laplace", "logistic", "t3", "uniform", "triangular", "cauchy", "lognormal", "shifted"]
GRIDS = [
    f"{law} d={d} rho={rho}"
    for law in ("normal", "laplace", "uniform")
    for d in (1000, 100_000)
    for rho in (0.01, 0.001)
]
Draw = Callable[..., torch.Tensor]


@pytest.fixture
def tests_made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[float, int]]]:
    """Record each (threshold, count) that is tested."""
    made: list[tuple[float, int]] = []

    def counting(magnitude: torch.Tensor, threshold: float) -> int:
        made.append((threshold, ops.reference.count_above(magnitude, threshold)))
        return made[-1][1]

    monkeypatch.setattr("gaussiank.ops.count_above", counting)
    return made


def in_band(count: int, k: int) -> bool:
    return 2 * k / 3 <= count <= 4 * k / 3


# ---------------------------------------------------------------------- the published code and the paper


@each("name", GRIDS)
@each(("mode", "key"), [("published", "published_trace"), ("paper", "one_sided_4_tests_trace")])
def test_traces_on_grids(
    paper_vectors: dict[str, Any], grid: Callable[[str, int], torch.Tensor], name: str, mode: Any, key: str
) -> None:
    law, numel, _ = name.split(" ")
    expected, vector = paper_vectors["grids"][name], grid(law, int(numel[2:]))
    compressor = GaussianK(mode)
    trace = compressor.trace(vector, expected["k"])
    assert [count for _, count in trace] == [count for _, count in expected[key]]
    assert [threshold for threshold, _ in trace] == pytest.approx([t for t, _ in expected[key]], rel=1e-9)
    assert in_band(trace[-1][1], expected["k"]) == expected[key.replace("trace", "in_band")]
    sent, hint = compressor.select(
        vector, expected["k"], SelectContext(step=9, hint=torch.tensor(0.1))
    )  # no use for a hint
    assert sent.tolist() == np.flatnonzero(np.abs(vector.numpy()) > trace[-1][0]).tolist()
    assert hint is None


def test_every_grid_is_tested(paper_vectors: dict[str, Any]) -> None:
    assert set(GRIDS) == set(paper_vectors["grids"])


@each("density", ["0.5", "0.25", "0.1", "0.05", "0.015625", "0.01", "0.005", "0.004", "0.001", "0.0001"])
def test_first_threshold_is_the_percentile_of_the_mode(
    paper_vectors: dict[str, Any], grid: Callable[[str, int], torch.Tensor], density: str
) -> None:
    vector = grid("normal", 10_000)
    vector = (vector - vector.mean()) / vector.std() * 2 + 0.5
    k = round(float(density) * 10_000)
    points = paper_vectors["ppf"][density]
    shares = {"one_sided": k / 10_000, "two_sided": k / 20_000}
    for mode, side in (("published", "two_sided"), ("paper", "one_sided")):
        if float(density) * 10_000 == k:
            assert -NormalDist().inv_cdf(shares[side]) == pytest.approx(points[side], rel=1e-9, abs=1e-9)
        threshold = GaussianK(mode).trace(vector, k)[0][0]  # type: ignore[arg-type]
        assert threshold == pytest.approx(0.5 - 2 * NormalDist().inv_cdf(shares[side]), rel=1e-9)


@each("law", [*LAWS, "sparse", "integers", "constant"])
@each(("mode", "most"), [("published", 3), ("paper", 4)])
def test_steps_are_a_half_and_one_and_a_half(draw: Draw, law: str, mode: Any, most: int) -> None:
    vector = draw(law, 20_000)
    for k in (1, 20, 200, 2000):
        trace = GaussianK(mode).trace(vector, k)
        assert 1 <= len(trace) <= most
        for threshold, count in trace:
            assert count == int((vector.abs() > threshold).sum())
        for (threshold, count), (following, _) in itertools.pairwise(trace):
            assert not in_band(count, k)
            assert following == threshold * (0.5 if count < 2 * k / 3 else 1.5)
        assert in_band(trace[-1][1], k) or len(trace) == most
        sent = GaussianK(mode).select(vector, k).indices
        assert sent.tolist() == (vector.abs() > trace[-1][0]).nonzero().squeeze(1).tolist()


def test_bracketed_has_no_trace() -> None:
    message = "mode must be published or paper for a trace, got 'bracketed'. Construct GaussianK so."
    with pytest.raises(ValueError, match=re.escape(message)):
        GaussianK().trace(torch.ones(10), 1)


def test_refuses_unknown_mode() -> None:
    message = "mode must be one of bracketed, published, paper, got 'exact'. Choose one of them."
    with pytest.raises(ValueError, match=re.escape(message)):
        GaussianK("exact")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the bracketed search


@each("density", [0.01, 0.001])
@each("law", LAWS)
def test_count_is_in_band_cold_and_warm(
    draw: Draw, tests_made: list[tuple[float, int]], law: str, density: float
) -> None:
    k, hint = int(100_000 * density), None
    for step in range(4):
        vector = draw(law, 100_000, seed=step)
        tests_made.clear()
        sent, hint = GaussianK().select(vector, k, SelectContext(step=step, hint=hint))
        assert hint is not None
        assert in_band(len(sent), k)
        assert len(sent) <= GaussianK().capacity(k, 100_000)  # type: ignore[operator]
        assert sent.tolist() == (vector.abs() > hint).nonzero().squeeze(1).tolist()
        assert tests_made[-1] == (float(hint), len(sent))
        assert len(tests_made) <= 20


@each("density", [0.25, 0.5, 0.75, 0.9, 1.0])
@each("law", LAWS)
def test_count_is_in_band_for_large_densities(draw: Draw, law: str, density: float) -> None:
    vector = draw(law, 10_000)
    k = int(density * 10_000)
    assert in_band(len(GaussianK().select(vector, k).indices), k)


@each("factor", [1e-30, 1e-3, 0.3, 0.9, 1.1, 3, 1e3, 1e30])
@each("law", ["normal", "cauchy", "uniform"])
def test_a_wrong_hint_is_found_out(draw: Draw, law: str, factor: float) -> None:
    vector = draw(law, 50_000)
    _, hint = GaussianK().select(vector, 500)
    assert hint is not None
    assert in_band(len(GaussianK().select(vector, 500, SelectContext(hint=hint * factor)).indices), 500)


@each("hint", [0.0, -1.0, float("nan"), float("inf")])
def test_a_hint_that_is_no_threshold_does_no_harm(draw: Draw, hint: float) -> None:
    vector = draw("laplace", 50_000)
    assert in_band(len(GaussianK().select(vector, 500, SelectContext(hint=torch.tensor(hint))).indices), 500)


@each("law", LAWS)
def test_a_good_hint_needs_one_test(draw: Draw, tests_made: list[tuple[float, int]], law: str) -> None:
    vector = draw(law, 50_000)
    cold = GaussianK().select(vector, 500)
    tests_made.clear()
    warm = GaussianK().select(vector, 500, SelectContext(hint=cold.hint))
    assert len(tests_made) == 1
    assert torch.equal(warm.indices, cold.indices)
    assert warm.hint == cold.hint


def test_a_hint_is_taken_as_it_is(draw: Draw) -> None:
    vector = draw("normal", 50_000)
    ordered = vector.abs().sort(descending=True).values
    for place in (340, 660):  # near either end of the band
        threshold = ordered[place].double()
        sent, hint = GaussianK().select(vector, 500, SelectContext(hint=threshold))
        assert (len(sent), hint) == (place, threshold)


@each("k", [1, 2, 10, 31])
@each("law", [*LAWS, "integers", "constant"])
def test_small_k_is_exact(draw: Draw, tests_made: list[tuple[float, int]], law: str, k: int) -> None:
    vector = draw(law, 10_000)
    sent, hint = GaussianK().select(vector, k, SelectContext(hint=torch.tensor(0.5)))
    assert sent.tolist() == select_topk(vector, k).tolist()
    assert hint is None
    assert tests_made == []


@each("nonzeros", [0, 1, 50, 66])
def test_fewer_nonzeros_than_the_band_are_all_sent(rng: torch.Generator, nonzeros: int) -> None:
    vector = torch.zeros(10_000)
    places = torch.randperm(10_000, generator=rng)[:nonzeros]
    vector[places] = torch.randn(nonzeros, generator=rng)
    sent = GaussianK().select(vector, 100).indices
    assert set(places.tolist()) <= set(sent.tolist())
    assert sent.tolist() == select_topk(vector, 100).tolist()


@each("nonzeros", [67, 100, 133])
def test_nonzeros_within_the_band_are_enough(rng: torch.Generator, nonzeros: int) -> None:
    vector = torch.zeros(10_000)
    places = torch.randperm(10_000, generator=rng)[:nonzeros]
    vector[places] = torch.randn(nonzeros, generator=rng)
    sent = GaussianK().select(vector, 100).indices
    assert in_band(len(sent), 100)


@each("value", [1.0, -2.5, 1e-45, 3e38])
def test_a_constant_vector_is_settled_exactly(value: float) -> None:
    sent, hint = GaussianK().select(torch.full((10_000,), value), 100)
    assert sent.tolist() == list(range(100))
    assert hint is None


@each("k", [32, 100, 1000, 2000, 5000])
def test_ties_are_in_band_or_exact(draw: Draw, k: int) -> None:
    vector = draw("integers", 10_000)
    sent = GaussianK().select(vector, k).indices
    assert in_band(len(sent), k)
    counts = [int((vector.abs() > level).sum()) for level in range(3)]
    if not any(in_band(count, k) for count in counts):
        assert sent.tolist() == select_topk(vector, k).tolist()
    else:
        assert len(sent) in [*counts, k]


@each("scale", [1e-40, 1e-20, 1e20, 1e37])
def test_search_does_not_depend_on_the_scale(draw: Draw, scale: float) -> None:
    vector = draw("uniform", 20_000) * scale
    assert in_band(len(GaussianK().select(vector, 200).indices), 200)


def test_double_vector(draw: Draw) -> None:
    vector = draw("t3", 50_000).double()
    sent, hint = GaussianK().select(vector, 500)
    assert in_band(len(sent), 500)
    assert sent.tolist() == (vector.abs() > hint).nonzero().squeeze(1).tolist()


@each(("k", "numel", "capacity"), [(1, 10, 1), (2, 10, 2), (3, 10, 4), (100, 1000, 133), (9, 10, 10)])
def test_capacity_is_the_top_of_the_band(k: int, numel: int, capacity: int) -> None:
    assert GaussianK().capacity(k, numel) == capacity
    assert GaussianK("published").capacity(k, numel) is None
    assert GaussianK("paper").capacity(k, numel) is None
