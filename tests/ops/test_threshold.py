"""Taking what is above a known threshold, counting it, and the moments measured on the way."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.each import each
from tests.ops.conftest import KERNELS, each_backend, each_law
from tests.ops.same import require_same

from gaussiank import ops
from gaussiank.ops import Moments, native, reference

Law = Callable[[int, torch.Generator], torch.Tensor]
THRESHOLDS = [-1.0, 0.0, 1e-45, 0.5, 2.5, 1e30, 1e300, math.inf]


def require_close(got: Moments, expected: Moments, vector: torch.Tensor) -> None:
    assert bool(got.finite) == bool(expected.finite)
    require_same(got.max_abs, expected.max_abs)
    if bool(got.finite):
        exact = vector.double().numpy()
        scale, grain = np.abs(exact).mean(), 1.5e-45  # of float32
        if scale * len(exact) < 1e38:  # the float32 that carries a mean has its limits, too
            assert float(got.mean) == pytest.approx(exact.mean(), rel=1e-6, abs=1e-6 * scale + grain)
            assert float(got.mean_abs) == pytest.approx(scale, rel=1e-6, abs=grain)
        if len(exact) > 1 and 1e-18 < scale < 1e18:
            assert float(got.std) == pytest.approx(exact.std(ddof=1), rel=1e-5, abs=1e-7 * scale)


@each_law
@each("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_takes_what_the_reference_takes(law: Law, dtype: torch.dtype, rng: torch.Generator) -> None:
    for numel in (1, 63, 64, 1000, 2049, 65_537):
        residual, grad = law(numel, rng), law(numel, rng).to(dtype)
        total = residual + grad.float()
        for threshold in THRESHOLDS:
            for capacity in {1, max(1, numel // 100), numel}:
                rest = residual.clone()
                expected = reference.accumulate_threshold(grad, rest, threshold, capacity)
                for name in KERNELS:
                    out = residual.clone()
                    with ops.use_backend(name):
                        got = ops.accumulate_threshold(grad, out, threshold, capacity)
                    context = (name, numel, threshold, capacity)
                    require_same(got.indices, expected.indices, context)
                    require_same(got.values, expected.values, context)
                    assert got.above == expected.above, context
                    require_same(out, rest, context)
            require_close(got.moments, expected.moments, total)


@each_backend
@pytest.mark.usefixtures("threads")
@each("stream", [False, True])
@each("capacity", [1, 1000, 250_000, 400_000])
def test_what_finds_no_room_stays(
    capacity: int, stream: bool, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "STREAM_FROM", 1 if stream else 2**31)
    residual, grad = torch.randn(400_000, generator=rng), torch.randn(400_000, generator=rng)
    out = ops.residual_buffer(400_000)
    for threshold in (-1.0, 0.3):
        taken = ops.accumulate_threshold(grad, residual, threshold, capacity, out=out)
        above = ((residual + grad).abs() > threshold).nonzero().squeeze(1).int()
        assert taken.above == above.numel()
        require_same(taken.indices, above[:capacity])
        assert bool((out[taken.indices] == 0).all())
        out[taken.indices] = taken.values
        require_same(out, residual + grad)


@each_backend
def test_nothing_is_above_infinity_and_nan_is_above_the_rest() -> None:
    residual = torch.tensor([1.0, math.nan, -math.inf, 3e38])
    nothing = ops.accumulate_threshold(torch.zeros(4), residual, math.inf, 4)
    assert (nothing.above, nothing.indices.tolist()) == (0, [])
    taken = ops.accumulate_threshold(torch.zeros(4), residual, 3.2e38, 4)
    assert (taken.above, taken.indices.tolist(), residual.tolist()) == (2, [1, 2], [1.0, 0.0, 0.0, pytest.approx(3e38)])
    assert not taken.moments.finite


@each_law
def test_selects_and_counts_above(law: Law, rng: torch.Generator) -> None:
    for numel in (1, 65, 4097, 131_073):
        vector = law(numel, rng)
        for threshold in THRESHOLDS:
            expected, count = reference.select_above(vector, threshold), reference.count_above(vector, threshold)
            for name in KERNELS:
                with ops.use_backend(name):
                    require_same(ops.select_above(vector, threshold), expected, name)
                    assert ops.count_above(vector, threshold) == count, name


@each_law
def test_moments_of_every_law(law: Law, rng: torch.Generator) -> None:
    for numel in (1, 2, 65, 4097, 131_073):
        vector = law(numel, rng)
        for name in KERNELS:
            with ops.use_backend(name):
                got = ops.moments(vector)
            assert all(moment.dtype == torch.float32 and moment.shape == () for moment in got[:4])
            require_close(got, reference.moments(vector), vector)


def test_moments_have_the_same_bits_on_every_processor_and_thread_count(rng: torch.Generator) -> None:
    vector = torch.randn(300_001, generator=rng) * 3 + 1
    before = torch.get_num_threads()
    seen = set()
    for name in KERNELS:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with ops.use_backend(name):
                alone = ops.moments(vector)
                fused = ops.accumulate_threshold(torch.zeros(300_001), vector.clone(), 5.0, 9).moments
                seen |= {tuple(map(float, alone)), tuple(map(float, fused))}
    torch.set_num_threads(before)
    assert len(seen) <= 1


@each_backend
@each("shift", [0.0, 1.0, 100.0])
def test_std_survives_a_shift(shift: float, rng: torch.Generator) -> None:
    vector = torch.randn(50_000, generator=rng).mul_(0.01).add_(shift)
    assert float(ops.moments(vector).std) == pytest.approx(float(vector.double().std()), rel=1e-4)
