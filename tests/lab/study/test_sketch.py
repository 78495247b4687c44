from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.each import each

from gaussiank_lab.study.sampling import sketch_layers, sketch_of
from gaussiank_lab.study.sketch import Sketch, layer_sketch, table_record
from gaussiank_lab.theory.bounds import tail_share

Draw = Callable[..., torch.Tensor]
LAWS = ("normal", "laplace", "t3", "uniform", "sparse", "shifted")
NUMEL = 20_000


@pytest.mark.parametrize("law", LAWS)
def test_moments(draw: Draw, law: str) -> None:
    u = draw(law, NUMEL)
    sketch = sketch_of(u)
    exact = u.double()
    assert (sketch.numel, sketch.nonfinite, sketch.zeros) == (NUMEL, 0, int((u == 0).sum()))
    assert sketch.square_sum == pytest.approx(float(exact.square().sum()), rel=1e-12)
    assert sketch.mean_abs == pytest.approx(float(exact.abs().mean()), rel=2e-3)
    assert sketch.mean == pytest.approx(float(exact.mean()), abs=2e-3 * sketch.mean_abs)
    assert sketch.std == pytest.approx(float(exact.std()), rel=2e-3)
    assert sketch.kurtosis == pytest.approx(float((exact**4).mean() / (exact**2).mean() ** 2), rel=5e-3)
    assert sketch.peak == pytest.approx(float(exact.abs().max()), rel=0.04)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("density", [0.001, 0.01, 0.3])
def test_thresholds_and_contractions(draw: Draw, law: str, density: float) -> None:
    u = draw(law, NUMEL)
    sketch = sketch_of(u)
    k = round(density * NUMEL)
    limit = float(u.abs().topk(k).values[-1])
    if limit > 0:
        assert sketch.threshold(density) == pytest.approx(limit, rel=0.03)
        assert sketch.density(limit) == pytest.approx(density, rel=0.15, abs=6 / NUMEL)
    sent = 1 - tail_share(u.numpy(), k)
    assert 1 - sketch.tail_share(density) == pytest.approx(sent, rel=0.01)


def test_curve_is_exact(draw: Draw) -> None:
    u = draw("laplace", NUMEL)
    density, contraction = sketch_of(u).curve()
    for at in (0, 10, 40, len(density) - 1):
        assert contraction[at] == pytest.approx(tail_share(u.numpy(), round(density[at] * NUMEL)), abs=1e-12)
    assert density[-1] == 1
    assert (np.diff(density) > 0).all()


@given(
    values=st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=False), min_size=1),
    cut=st.integers(0, 20),
)
def test_parts_merge_to_the_whole_and_records_bring_them_back(values: list[float], cut: int) -> None:
    u = torch.tensor(values, dtype=torch.float32)
    cut = min(cut, len(values))
    whole = sketch_of(u)
    parts = sketch_of(u[:cut]) + sketch_of(u[cut:]) if 0 < cut < len(values) else whole
    assert (parts.counts == whole.counts).all()
    assert np.allclose(parts.energy, whole.energy, rtol=1e-12, atol=0)
    assert whole.numel + whole.nonfinite == len(values)
    assert whole.nonfinite == int((~torch.isfinite(u)).sum())
    back = Sketch.from_record(json.loads(json.dumps(whole.as_record())))
    assert (back.numel, back.nonfinite) == (whole.numel, whole.nonfinite)
    assert back.square_sum == pytest.approx(whole.square_sum, rel=1e-6)
    assert back.kurtosis == pytest.approx(whole.kurtosis, rel=1e-4)
    assert back.mean == pytest.approx(whole.mean, rel=1e-4, abs=1e-6 * whole.peak)


def test_coarser_bins_hold_the_same(draw: Draw) -> None:
    fine = sketch_of(draw("t3", NUMEL))
    coarse = fine.fold(1)
    assert coarse.bits == 1
    assert (coarse.numel, coarse.square_sum) == (fine.numel, pytest.approx(fine.square_sum))
    assert coarse.counts.sum() == fine.counts.sum()
    assert (fine + coarse).bits == 1
    assert coarse.std == pytest.approx(fine.std, rel=0.01)
    with pytest.raises(ValueError, match=r"bits must be in \[0, 1\], got 4"):
        coarse.fold(4)


def test_layers_are_sketched_in_one_pass(draw: Draw) -> None:
    u = draw("laplace", 3000)
    u[5] = torch.nan
    u[1000] *= 1e9  # layers of other scales share a record
    u[1001:2500] *= 1e-3
    u[2500] = 1e-12
    numels = [1000, 0, 1, 1499, 500]
    whole, counts, energy = sketch_layers(u, numels)
    layers = [Sketch(*tables) for tables in zip(counts, energy, strict=True)]
    assert (whole.numel, whole.nonfinite) == (2999, 1)
    assert [layer.numel + layer.nonfinite for layer in layers] == numels
    assert whole.square_sum == pytest.approx(float(u.nan_to_num().double().square().sum()))
    parts = u.nan_to_num().double().split(numels)
    assert [layer.square_sum for layer in layers] == pytest.approx([float(part.square().sum()) for part in parts])
    assert (whole.fold(1).counts == sum(layer.counts for layer in layers)).all()
    record = json.loads(json.dumps(table_record(counts, energy)))
    for number, layer in enumerate(layers):
        again = layer_sketch(record, number)
        alone = Sketch.from_record(layer.as_record())
        assert (again.numel, again.nonfinite) == (layer.numel, layer.nonfinite)
        assert (alone.counts[:, 2:] <= again.counts[:, 2:]).all()  # at least what the layer's own record would hold
        assert (again.counts[:, 2:] <= layer.counts[:, 2:]).all()
        assert again.square_sum == pytest.approx(layer.square_sum)


@pytest.mark.parametrize("change", [{"plus": "?"}, {"zeros": None}, {"square_sum": []}, {"first": 10**6}])
def test_damaged_layers(draw: Draw, change: dict[str, object]) -> None:
    record = table_record(*sketch_layers(draw("normal", 100), [60, 40])[1:]) | change
    with pytest.raises(ValueError, match="layers must be what a recorder wrote"):
        layer_sketch(record, 1)


def test_layers_of_zeros() -> None:
    record = table_record(*sketch_layers(torch.zeros(5), [5, 0])[1:])
    assert [layer_sketch(record, number).zeros for number in (0, 1)] == [5, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(draw: Draw, dtype: torch.dtype) -> None:
    u = draw("normal", 1000).to(dtype)
    assert sketch_of(u).square_sum == pytest.approx(float(u.float().double().square().sum()), rel=1e-6)


def test_nothing_and_zeros() -> None:
    empty = Sketch.empty()
    assert (empty.numel, empty.std, empty.kurtosis, empty.peak, empty.mean) == (0, 0, 0, 0, 0)
    assert Sketch.sum([]) is None
    zeros = sketch_of(torch.zeros(10))
    assert (zeros.numel, zeros.zeros, zeros.tail_share(0.1), zeros.threshold(0.1)) == (10, 10, 0, 0)
    assert zeros.density(0.5) == 0
    half = sketch_of(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert (half.tail_share(0.25), half.tail_share(0.9), half.threshold(0.9)) == (0, 0, 0)
    assert Sketch.from_record(zeros.as_record()).zeros == 10


def test_range_of_a_record_is_bounded() -> None:
    u = torch.tensor([1.0, 1e-3, 1e-30])
    record = sketch_of(u).as_record()
    assert (record["tiny"], record["zeros"]) == (1, 0)
    back = Sketch.from_record(record)
    assert (back.numel, back.zeros) == (3, 1)


@each(
    "damage",
    [
        {"plus": "!"},
        {"plus": None},
        {"first": 10**9},
        {"bits": "x"},
        {"energy": "AAAA"},
        {"zeros": None},
        {"square_sum": "y"},
    ],
)
def test_damaged_records(damage: dict[str, Any]) -> None:
    record = sketch_of(torch.tensor([1.0, -2.0])).as_record()
    with pytest.raises(ValueError, match="sketch must be what a recorder wrote"):
        Sketch.from_record({**record, **damage})


def test_wrong_shape() -> None:
    with pytest.raises(ValueError, match="counts must have shape"):
        Sketch(np.zeros((2, 300), dtype=np.int64), np.zeros(300))
