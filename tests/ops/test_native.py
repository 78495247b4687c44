"""The kernels against the reference, bit for bit: laws x sizes x dtypes x hints x buffers x threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.each import each
from tests.ops.conftest import KERNELS, LAWS, each_backend, each_law
from tests.ops.same import require_same

from gaussiank import ops
from gaussiank.ops import native, reference
from gaussiank.sparse import SparseGradient

Law = Callable[[int, torch.Generator], torch.Tensor]
NARROW = [torch.float32, torch.bfloat16, torch.float16]
# around a lane, a line, a group, a tile, the limit of ranking all, a chunk, two chunks
SIZES = [1, 2, 15, 17, 63, 64, 65, 2047, 2049, 4096, 4097, 10_000, 65_537, 131_073]
HINTS = [0.0, -1.0, math.nan, math.inf, 1e-45, 1e-6, 1e30]


def some_k(numel: int) -> set[int]:
    few = {1, max(1, numel // 100)}
    return few if numel > 20_000 else few | {max(1, numel // 6), max(1, numel // 3), numel}


def require_topk_like_reference(
    grad: torch.Tensor, residual: torch.Tensor, k: int, hint: torch.Tensor | None, out: torch.Tensor | None = None
) -> None:
    """Compare a call with the reference's, and check that nothing was lost."""
    total = residual + grad.float()
    rest = residual.clone()
    expected = reference.accumulate_topk(grad, rest, k)
    for name in KERNELS:
        before = residual.clone()
        into = before if out is None else out
        with ops.use_backend(name):
            got = ops.accumulate_topk(grad, before, k, hint, out=out)
        context = (name, grad.dtype, grad.numel(), k, hint, list(native.report))
        require_same(got.indices, expected.indices, context)
        require_same(got.values, expected.values, context)
        require_same(got.hint, expected.hint, context)
        require_same(into, rest, context)
        if out is not None:
            require_same(before, residual, context)
        into[got.indices] = got.values
        require_same(into, total, context)


# ---------------------------------------------------------------------- exact take, chunk by chunk


@each_law
def test_takes_of_each_chunk_what_the_reference_takes(law: Law, rng: torch.Generator) -> None:
    for numel, chunk in ((1, 1), (100, 7), (4097, 64), (20_000, 4096), (9000, 3000), (300_000, 4096), (65_600, 65_536)):
        vector = law(numel, rng)
        entries = torch.full((-(-numel // chunk),), chunk)
        entries[-1] = numel - chunk * (len(entries) - 1)
        for share in (1.0, 0.5, 1 / 64):
            # of some chunks nothing
            shares = (entries * share * torch.rand(len(entries), generator=rng).round(decimals=1)).long()
            shares[-1] = max(1, int(entries[-1] * share))
            expected = reference.chunk_topk(vector, chunk, shares)
            for name in KERNELS:
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    with ops.use_backend(name):
                        require_same(ops.chunk_topk(vector, chunk, shares), expected, name, numel, chunk, share)


# ---------------------------------------------------------------------- exact take


@each_law
@each("dtype", NARROW, ids=str)
def test_takes_what_the_reference_takes(law: Law, dtype: torch.dtype, rng: torch.Generator) -> None:
    for numel in SIZES:
        residual, grad = law(numel, rng), law(numel, rng).to(dtype)
        for k in some_k(numel):
            require_topk_like_reference(grad, residual, k, None)


@each_law
def test_hint_changes_nothing_but_the_time(law: Law, rng: torch.Generator) -> None:
    for numel in (100, 20_000):
        residual, grad = law(numel, rng), law(numel, rng)
        for k in (1, numel // 50):
            right = float(reference.accumulate_topk(grad, residual.clone(), k).hint)
            for value in [*HINTS, right, right / 2, right * 1.01, right * 2]:
                require_topk_like_reference(grad, residual, k, torch.tensor(value))
            require_topk_like_reference(grad, residual, k, torch.tensor(right, dtype=torch.float64))


@each_law
@each("dtype", NARROW, ids=str)
@each("stream", [False, True])
def test_separate_output(
    law: Law, dtype: torch.dtype, stream: bool, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "STREAM_FROM", 1 if stream else 2**31)
    for numel in (1, 63, 5000, 70_000):
        residual, grad = law(numel, rng), law(numel, rng).to(dtype)
        out = ops.residual_buffer(numel).fill_(math.nan)
        for k in (1, max(1, numel // 100)):
            for hint in (None, torch.tensor(1e-3), torch.tensor(1e9)):
                require_topk_like_reference(grad, residual, k, hint, out)


@each_law
@pytest.mark.usefixtures("threads")
def test_threads_change_nothing(law: Law, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ONE_THREAD_BELOW", 1)
    for numel in (100, 70_001):
        residual, grad = law(numel, rng), law(numel, rng)
        for k in (1, numel // 20):
            for hint in (None, torch.tensor(1e-3)):
                require_topk_like_reference(grad, residual, k, hint)


@each("offset", [1, 3, 5, 13])
@each("dtype", NARROW, ids=str)
def test_slices_that_start_anywhere(offset: int, dtype: torch.dtype, rng: torch.Generator) -> None:
    residual, grad, out = (torch.randn(70_100, generator=rng) for _ in range(3))
    grad = grad.to(dtype)
    for numel in (1, 50, 65_537, 70_000):
        end = offset + numel
        for into in (None, out[7 : 7 + numel]):
            require_topk_like_reference(grad[offset:end], residual[offset:end], max(1, numel // 99), None, into)
        view = residual.clone()
        before = view.clone()
        ops.accumulate_topk(grad[offset:end], view[offset:end], 1)
        require_same(view[:offset], before[:offset])  # nothing beside the slice is touched
        require_same(view[end:], before[end:])


@each("name", KERNELS)
def test_hint_saves_the_sample_and_a_bad_one_costs_a_pass(name: str, rng: torch.Generator) -> None:
    vector = torch.randn(300_000, generator=rng)
    passes, candidates, source = 0, 1, 2
    with ops.use_backend(name):
        right = ops.topk(vector, 300).hint
        assert (native.report[passes], native.report[source]) == (1, 1)
        ops.topk(vector, 300, right)
        assert (native.report[passes], native.report[source]) == (1, 0)
        assert 300 <= native.report[candidates] < 600
        for bad in (right * 3, right / 100):  # too few candidates; more than there is room for
            ops.topk(vector, 300, bad)
            assert (native.report[passes], native.report[source]) == (2, 1)


@each("name", KERNELS)
def test_ties_everywhere_are_settled_by_counting(name: str) -> None:
    vector = torch.ones(300_000)
    with ops.use_backend(name):
        assert ops.topk(vector, 300).indices.tolist() == list(range(300))
    assert native.report[2] == 2


@each_backend
def test_denormals_are_not_flushed() -> None:
    residual = torch.zeros(5000)
    residual[4000] = 1e-45
    taken = ops.accumulate_topk(torch.zeros(5000), residual, 1)
    assert (taken.indices.tolist(), taken.values.tolist()) == ([4000], [pytest.approx(1e-45)])


@each_backend
def test_steps_of_training_lose_nothing(rng: torch.Generator) -> None:
    residual = torch.zeros(100_000)
    shadow = residual.clone()
    hint = None
    for step in range(12):
        grad = torch.randn(100_000, generator=rng) * (1 + step % 3)
        taken = ops.accumulate_topk(grad, residual, 100, hint)
        hint = taken.hint
        expected = reference.accumulate_topk(grad, shadow, 100)
        require_same(taken.values, expected.values)
        require_same(residual, shadow)


def test_threads_of_python_do_not_disturb_each_other(rng: torch.Generator) -> None:
    vectors = [torch.randn(numel, generator=rng) for numel in (5000, 80_000, 20_000, 80_000) for _ in range(5)]
    with ThreadPoolExecutor(4) as pool:
        chosen = list(pool.map(lambda vector: ops.select_topk(vector, 70), vectors))
    for vector, indices in zip(vectors, chosen, strict=True):
        require_same(indices, reference.select_topk(vector, 70))


# ---------------------------------------------------------------------- selection alone


@each_law
def test_selects_what_the_reference_selects(law: Law, rng: torch.Generator) -> None:
    for numel in SIZES:
        vector = law(numel, rng)
        before = vector.clone()
        for k in some_k(numel):
            expected = reference.topk(vector, k)
            for name in KERNELS:
                with ops.use_backend(name):
                    require_same(ops.select_topk(vector, k), expected.indices, name, numel, k)
                    for one, other in zip(ops.topk(vector, k, expected.hint), expected, strict=True):
                        require_same(one, other, name, numel, k)
        require_same(vector, before)


# ---------------------------------------------------------------------- any bits, any size


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=200), st.data())
def test_any_bit_patterns(bits: list[int], data: st.DataObject) -> None:
    residual = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    grad = residual.flip(0).mul(data.draw(st.sampled_from([0.0, 1.0, -1.0, 1e-30])))
    k = data.draw(st.integers(1, len(bits)))
    require_topk_like_reference(grad.to(data.draw(st.sampled_from(NARROW))), residual, k, None)
    threshold = abs(data.draw(st.floats(width=32, allow_nan=False)))
    for name in KERNELS:
        with ops.use_backend(name):
            require_same(ops.select_above(residual, threshold), reference.select_above(residual, threshold), name)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numel=st.integers(1, 100_000),
    share=st.floats(0, 1),
    laws=st.tuples(st.sampled_from(sorted(LAWS)), st.sampled_from(sorted(LAWS))),
    dtype=st.sampled_from(NARROW),
    hint=st.one_of(st.none(), st.floats(width=32)),
    seed=st.integers(0, 2**31),
)
def test_any_problem(
    numel: int, share: float, laws: tuple[str, str], dtype: torch.dtype, hint: float | None, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    residual, grad = LAWS[laws[0]](numel, rng), LAWS[laws[1]](numel, rng).to(dtype)
    k = max(1, round(share**4 * numel))
    require_topk_like_reference(grad, residual, k, None if hint is None else torch.tensor(hint))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numel=st.integers(1, 100_000),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=9),
    law=st.sampled_from(sorted(LAWS)),
    seed=st.integers(0, 2**31),
)
def test_any_parts(numel: int, shares: list[float], law: str, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    parts = []
    for share in shares:
        kept = round(share**3 * numel)
        indices = torch.randperm(numel, generator=rng)[:kept].sort().values.int()
        parts.append(SparseGradient(indices, LAWS[law](max(1, kept), rng)[:kept], numel))
    expected, mean = torch.empty(numel), torch.empty(numel)
    finite = reference.scatter_mean(parts, expected)
    wanted = reference.union(parts)
    for name in KERNELS:
        with ops.use_backend(name):
            assert ops.scatter_mean(parts, mean.fill_(math.nan)) == finite
            require_same(mean, expected, name)
            together = ops.union(parts)
            require_same(together.indices, wanted.indices, name)
            require_same(together.values, wanted.values, name)
