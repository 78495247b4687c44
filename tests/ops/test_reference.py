"""The laws of the ops, on every backend."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.each import each
from tests.ops.conftest import each_backend

from gaussiank.ops import (
    RESIDUAL_DTYPES,
    accumulate,
    all_finite,
    count_above,
    moments,
    nonfinite_indices,
    require_k,
    require_vector,
    scatter_mean,
    select_above,
    select_topk,
)
from gaussiank.sparse import SparseGradient

INF, NAN = math.inf, math.nan
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DENORMAL = 1e-45  # the smallest float32


def brute_topk(vector: torch.Tensor, k: int) -> list[int]:
    """Sort everything by (-|u|, index), with NaN as infinity, and cut."""
    magnitude = np.abs(vector.double().numpy())
    magnitude[np.isnan(magnitude)] = np.inf
    return sorted(np.argsort(-magnitude, kind="stable")[:k].tolist())


def sparse(entries: dict[int, float], numel: int, dtype: torch.dtype = torch.float32) -> SparseGradient:
    return SparseGradient(
        torch.tensor(list(entries), dtype=torch.int32), torch.tensor(list(entries.values()), dtype=dtype), numel
    )


# ---------------------------------------------------------------------- select_topk


@each_backend
@each("k", [1, 2, 10, 100, 999, 1000])
@each("law", ["normal", "laplace", "cauchy", "lognormal", "shifted", "sparse", "integers", "constant"])
def test_topk_is_the_brute_force_choice(draw: Callable[..., torch.Tensor], law: str, k: int) -> None:
    vector = draw(law, 1000)
    before = vector.clone()
    chosen = select_topk(vector, k)
    assert chosen.dtype == torch.int32
    assert chosen.tolist() == brute_topk(vector, k)
    assert torch.equal(vector, before)


@each_backend
@each("dtype", FLOATS, ids=str)
def test_topk_of_every_dtype(draw: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    vector = draw("normal", 5000).to(dtype)  # bfloat16 has a few hundred magnitudes here: ties at every k
    for k in (1, 37, 500, 4999, 5000):
        assert select_topk(vector, k).tolist() == brute_topk(vector, k)


@each_backend
@each(
    "values",
    [
        [0.0] * 9,
        [2.0] * 9,
        [1.0, -1.0, 1.0, -1.0, 1.0],
        [-0.0, 0.0, -0.0, 0.0],
        [0.0, 5.0, 0.0, -0.0, 0.0, -3.0, 0.0],
        [0.0, -0.0, 0.0, DENORMAL, -DENORMAL, 2 * DENORMAL],
        [3e38, -3e38, 1e38, 3e38],
        [1.0, INF, 2.0, -INF, 3.0],
        [1.0, NAN, 2.0, NAN, 3.0],
        [3e38, NAN, -INF, 3e38, INF, NAN, 0.0],
        [NAN, NAN, NAN],
        [7.0],
        [0.0],
    ],
    ids=str,
)
def test_topk_of_awkward_values_at_every_k(values: list[float]) -> None:
    vector = torch.tensor(values)
    for k in range(1, len(values) + 1):
        assert select_topk(vector, k).tolist() == brute_topk(vector, k)


@each_backend
def test_topk_counts_infinity_and_nan_as_the_largest() -> None:
    vector = torch.tensor([1e38, -3.4e38, NAN, 3.4e38, -INF, INF])
    assert select_topk(vector, 3).tolist() == [2, 4, 5]
    assert select_topk(vector.double(), 3).tolist() == [2, 4, 5]
    assert select_topk(vector, 2).tolist() == [2, 4]
    assert select_topk(vector, 4).tolist() == [1, 2, 4, 5]


@each_backend
@each("k", [1, 50, 100, 101, 9_999])
def test_topk_with_ties_across_a_long_vector(rng: torch.Generator, k: int) -> None:
    vector = torch.randint(-2, 3, (10_000,), generator=rng).float()
    assert select_topk(vector, k).tolist() == brute_topk(vector, k)


@each_backend
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.data())
def test_topk_of_small_integers(values: list[int], data: Any) -> None:
    vector = torch.tensor(values, dtype=torch.float32)
    k = data.draw(st.integers(1, len(values)))
    assert select_topk(vector, k).tolist() == brute_topk(vector, k)


@each_backend
@given(st.lists(st.floats(width=32), min_size=1, max_size=30), st.integers(1, 30))
def test_topk_of_any_float(values: list[float], k: int) -> None:
    vector = torch.tensor(values)
    k = min(k, len(values))
    assert select_topk(vector, k).tolist() == brute_topk(vector, k)


@each_backend
def test_topk_example_of_the_paper() -> None:
    vector = torch.tensor([3.0, -1.0, 2.0, 0.5])
    rest = vector - SparseGradient.pick(vector, select_topk(vector, 2)).dense()
    assert float(rest.square().sum()) == 1.25


@each_backend
@each("law", ["normal", "laplace", "uniform"])
@each("numel", [1000, 100_000])
@each("density", ["0.01", "0.001"])
def test_topk_threshold_and_contraction_on_grids(
    paper_vectors: dict[str, Any], grid: Callable[[str, int], torch.Tensor], law: str, numel: int, density: str
) -> None:
    expected = paper_vectors["grids"][f"{law} d={numel} rho={density}"]
    vector = grid(law, numel)
    sent = SparseGradient.pick(vector, select_topk(vector, expected["k"]))
    assert float(sent.values.abs().min()) == pytest.approx(expected["topk_threshold"], rel=1e-9)
    gamma = float((vector - sent.dense()).square().sum() / vector.square().sum())
    assert gamma == pytest.approx(expected["topk_gamma"], rel=1e-9)
    assert float(moments(vector).std) == pytest.approx(expected["std_ddof1"], rel=1e-9)


# ---------------------------------------------------------------------- thresholds


@each_backend
@each("dtype", FLOATS, ids=str)
@each("threshold", [-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 1e300])
def test_above_is_strict(rng: torch.Generator, dtype: torch.dtype, threshold: float) -> None:
    vector = (torch.randint(-6, 7, (500,), generator=rng) / 2).to(dtype)
    expected = [i for i, value in enumerate(vector.tolist()) if abs(value) > threshold]
    chosen = select_above(vector, threshold)
    assert chosen.dtype == torch.int32
    assert chosen.tolist() == expected
    assert count_above(vector.abs(), threshold) == len(expected)


@each_backend
def test_above_finds_denormals_and_infinity_but_not_zero_and_nan() -> None:
    vector = torch.tensor([0.0, -0.0, DENORMAL, -DENORMAL, NAN, INF, -INF])
    assert select_above(vector, 0.0).tolist() == [2, 3, 5, 6]
    assert count_above(vector.abs(), 0.0) == 4
    assert select_above(vector, INF).tolist() == []


# ---------------------------------------------------------------------- moments and finiteness


@each_backend
@each("law", ["normal", "laplace", "uniform", "lognormal", "shifted", "sparse", "integers", "constant"])
@each("dtype", [torch.float32, torch.float64], ids=str)
def test_moments_are_those_of_numpy(draw: Callable[..., torch.Tensor], law: str, dtype: torch.dtype) -> None:
    vector = draw(law, 20_000).to(dtype)
    exact = vector.double().numpy()
    rel = 1e-5 if dtype == torch.float32 else 1e-12
    measured = moments(vector)
    scale = np.abs(exact).mean()
    assert float(measured.mean) == pytest.approx(exact.mean(), rel=rel, abs=rel * scale)
    assert float(measured.std) == pytest.approx(exact.std(ddof=1), rel=rel, abs=rel * scale)
    assert float(measured.mean_abs) == pytest.approx(scale, rel=rel)
    assert float(measured.max_abs) == np.abs(exact).max()


@each_backend
@each("values", [[-5.0, -2.0], [2.0, 5.0], [-5.0, 2.0], [2.0, -5.0], [0.0, -5.0, 0.0]], ids=str)
def test_largest_magnitude_of_either_sign(values: list[float]) -> None:
    assert float(moments(torch.tensor(values)).max_abs) == 5.0


@each_backend
@each("value", [3.0, -3.0, 0.0])
def test_moments_of_one_entry(value: float) -> None:
    assert [float(moment) for moment in moments(torch.tensor([value]))] == [value, 0.0, abs(value), abs(value), 1.0]


@each_backend
@each("dtype", FLOATS, ids=str)
@each("bad", [INF, -INF, NAN])
@each("place", [0, 500, 999])
def test_one_entry_that_is_not_finite_is_seen(dtype: torch.dtype, bad: float, place: int) -> None:
    vector = torch.ones(1000, dtype=dtype)
    assert bool(all_finite(vector))
    vector[place] = bad
    seen = all_finite(vector)
    assert (seen.shape, seen.dtype, bool(seen)) == ((), torch.bool, False)
    assert nonfinite_indices(vector, 10).tolist() == [place]


@each_backend
def test_largest_finite_values_are_finite() -> None:
    for dtype in FLOATS:
        limit = torch.finfo(dtype).max
        assert bool(all_finite(torch.tensor([limit, -limit], dtype=dtype)))


@each_backend
def test_nothing_is_finite() -> None:
    assert bool(all_finite(torch.empty(0)))


@each_backend
def test_first_entries_that_are_not_finite() -> None:
    vector = torch.tensor([1.0, NAN, 3e38, -INF, 0.0, INF])
    assert nonfinite_indices(vector, 9).tolist() == [1, 3, 5]
    assert nonfinite_indices(vector, 2).tolist() == [1, 3]
    assert nonfinite_indices(vector, 2).dtype == torch.int32
    assert nonfinite_indices(torch.ones(4), 2).tolist() == []


# ---------------------------------------------------------------------- accumulate


@each_backend
@each("grad_dtype", FLOATS, ids=str)
def test_accumulate_adds_in_the_dtype_of_the_residual(rng: torch.Generator, grad_dtype: torch.dtype) -> None:
    dtype = RESIDUAL_DTYPES[grad_dtype]
    residual = torch.randn(1000, generator=rng, dtype=dtype)
    grad = torch.randn(1000, generator=rng).to(grad_dtype)
    out = torch.full((1000,), NAN, dtype=dtype)
    kept = (residual.clone(), grad.clone())
    assert accumulate(residual, grad, out=out) is out
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.numpy(), residual.numpy() + grad.to(dtype).numpy())
    assert torch.equal(residual, kept[0])
    assert torch.equal(grad, kept[1])


@each_backend
def test_accumulate_over_the_residual_itself(rng: torch.Generator) -> None:
    residual, grad = torch.randn(1000, generator=rng), torch.randn(1000, generator=rng).bfloat16()
    expected = residual + grad.float()
    assert torch.equal(accumulate(residual, grad, out=residual), expected)
    assert torch.equal(residual, expected)


# ---------------------------------------------------------------------- scatter_mean


@each_backend
@each("dtype", [torch.float32, torch.float64], ids=str)
@each(
    ("parts", "mean"),
    [
        ([{0: 1, 1: 2, 2: 3}, {0: 10, 2: 20}], [5.5, 1, 11.5, 0]),
        ([{0: 1, 1: 2, 2: 3, 3: 4, 4: 5}, {3: 10}], [0.5, 1, 1.5, 7, 2.5, 0]),
        ([{0: 5, 2: 7}, {0: -1, 1: -2, 2: -3, 3: -4}], [2, -1, 2, -2]),
        ([{}, {0: 5, 3: -7}], [2.5, 0, 0, -3.5]),
        ([{}, {}, {}], [0, 0, 0, 0]),
        ([{1: 3.0}], [0, 3, 0]),
    ],
    ids=["unequal counts", "one short", "covered", "one empty worker", "all empty", "one worker"],
)
def test_mean_of_the_vectors_of_the_paper(parts: list[dict[int, float]], mean: list[float], dtype: torch.dtype) -> None:
    out = torch.full((len(mean),), NAN, dtype=dtype)
    assert scatter_mean([sparse(part, len(mean), dtype) for part in parts], out)
    assert out.tolist() == mean


@each_backend
def test_mean_adds_in_rank_order(draw: Callable[..., torch.Tensor]) -> None:
    vectors = [draw("cauchy", 300, seed) for seed in range(7)]
    parts = [SparseGradient.pick(vector, select_topk(vector, 200)) for vector in vectors]
    expected = np.zeros(300, dtype=np.float32)
    for part in parts:
        expected += part.dense().numpy()
    mean = torch.empty(300)
    assert scatter_mean(parts, mean)
    np.testing.assert_array_equal(mean.numpy(), expected / np.float32(7))


@each_backend
def test_mean_passes_infinity_and_nan_on() -> None:
    out = torch.empty(4)
    assert not scatter_mean([sparse({0: INF, 1: NAN, 2: INF}, 4), sparse({2: -INF}, 4)], out)
    assert out[0] == INF
    assert bool(out[1].isnan())
    assert bool(out[2].isnan())
    assert out[3] == 0


# ---------------------------------------------------------------------- what is refused


@each_backend
@each(
    ("vector", "message"),
    [
        (
            torch.zeros(2, 2),
            "grad must be flat and contiguous, got shape (2, 2) with strides (2, 1). Pass grad.reshape",
        ),
        (
            torch.zeros(8)[::2],
            "grad must be flat and contiguous, got shape (4,) with strides (2,). Pass grad.reshape(-1).",
        ),
        (torch.tensor(1.0), "grad must be flat and contiguous, got shape () with strides (). Pass grad.reshape(-1)."),
        (torch.zeros(0), "grad must have 1 to 2147483647 entries, got 0. Leave out empty vectors and split long ones."),
        (torch.empty(2**31, device="meta"), "grad must have 1 to 2147483647 entries, got 2147483648. Leave out empty"),
        (
            torch.zeros(3, dtype=torch.int64),
            "grad must be one of float32, bfloat16, float16, float64, got torch.int64. Convert it first.",
        ),
        (
            torch.zeros(3, dtype=torch.complex64),
            "grad must be one of float32, bfloat16, float16, float64, got torch.comp",
        ),
    ],
    ids=["matrix", "strided", "scalar", "empty", "too long", "int64", "complex"],
)
def test_refuses_what_is_no_vector(vector: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        require_vector(vector, "grad")


@each_backend
def test_topk_checks_its_vector() -> None:
    with pytest.raises(ValueError, match=r"^accumulated must be flat and contiguous, got shape \(2, 2\)"):
        select_topk(torch.zeros(2, 2), 1)


@each_backend
@each("dtype", RESIDUAL_DTYPES, ids=str)
def test_takes_each_vector_that_has_a_residual(dtype: torch.dtype) -> None:
    require_vector(torch.zeros(1, dtype=dtype), "grad")
    assert RESIDUAL_DTYPES[dtype] == (torch.float64 if dtype == torch.float64 else torch.float32)


@each_backend
@each("k", [0, -1, 5])
def test_refuses_k_outside_the_vector(k: int) -> None:
    message = re.escape(f"k must be in [1, numel = 4], got {k}. Ask for at least one entry and at most all.")
    with pytest.raises(ValueError, match=message):
        require_k(k, 4)
    with pytest.raises(ValueError, match=message):
        select_topk(torch.zeros(4), k)
