"""Mean and union of sparse parts on every backend."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from tests.each import each
from tests.ops.conftest import KERNELS, each_backend
from tests.ops.same import require_same
from torch import Tensor

from gaussiank import ops
from gaussiank.ops import reference
from gaussiank.sparse import SparseGradient


def random_parts(count: int, kept: int, numel: int, rng: torch.Generator) -> list[SparseGradient]:
    return [
        SparseGradient(
            torch.randperm(numel, generator=rng)[:kept].sort().values.int(), torch.randn(kept, generator=rng), numel
        )
        for _ in range(count)
    ]


def mean_of(parts: list[SparseGradient], ops: ModuleType = ops) -> Tensor:
    """Return the mean; what is said of it being finite must be so."""
    out = torch.full((parts[0].numel,), math.nan)
    assert bool(ops.scatter_mean(parts, out)) == bool(out.isfinite().all())
    return out


def at(indices: list[int], numel: int = 10) -> SparseGradient:
    return SparseGradient(torch.tensor(indices, dtype=torch.int32), torch.ones(len(indices)), numel)


@pytest.mark.usefixtures("threads")
@each("count", [1, 2, 3, 4, 7, 16])  # powers of two are multiplied, others divided
# few entries are divided one by one, many all at once; 4,500 of each of 3 are only just few
@each("kept", [0, 1, 500, 4_500, 40_000])
def test_mean_and_sum_in_rank_order(count: int, kept: int, rng: torch.Generator) -> None:
    numel = 300_001
    parts = random_parts(count, kept, numel, rng)
    mean, total = mean_of(parts, reference), reference.union(parts)
    for name in KERNELS:
        with ops.use_backend(name):
            require_same(mean_of(parts), mean, name)
            union = ops.union(parts).check()
        require_same(union.indices, total.indices, name)
        require_same(union.values, total.values, name)


@each_backend
def test_mean_of_overflowing_and_denormal_sums() -> None:
    parts = [SparseGradient(torch.tensor([0, 1], dtype=torch.int32), torch.tensor([3e38, 3e-45]), 2) for _ in range(2)]
    assert mean_of(parts).tolist() == [math.inf, pytest.approx(3e-45, rel=1e-9)]


@each("odd", [3e38, 1e-38, 3e-45, 0.0, -0.0, math.inf, math.nan], ids=str)
def test_few_entries_in_a_long_vector_have_the_bits_of_a_division(odd: float, rng: torch.Generator) -> None:
    """So few that the mean is summed up in place, already divided; not where a product would be rounded otherwise."""
    parts = random_parts(8, 100, 100_000, rng)
    for part in parts[:3]:
        part.values[::9] = odd
        part.indices[:9] = torch.arange(9, dtype=torch.int32)
    mean = mean_of(parts, reference)
    for name in KERNELS:
        with ops.use_backend(name):
            require_same(mean_of(parts), mean, name)


@each_backend
def test_union_keeps_what_cancels_out() -> None:
    part = at([1, 4])
    both = ops.union([part, SparseGradient(part.indices, -part.values, 10), at([])])
    assert (both.indices.tolist(), both.values.tolist(), both.numel) == ([1, 4], [0.0, 0.0], 10)


@each_backend
def test_union_is_the_sum_that_scatter_mean_divides(rng: torch.Generator) -> None:
    parts = random_parts(5, 300, 4000, rng)
    require_same(ops.union(parts).dense().div_(5), mean_of(parts))


@each("name", KERNELS)
@each("indices", [[3, 2], [2, 2], [-1, 4], [4, 10], [2**31 - 1], [-(2**31)], [9, 0, 5]], ids=str)
def test_indices_out_of_order_are_refused(name: str, indices: list[int]) -> None:
    message = r"^parts must hold indices that ascend within \[0, numel\), got others\. SparseGradient\.check\(\)"
    with ops.use_backend(name):
        with pytest.raises(ValueError, match=message):
            ops.scatter_mean([at([1]), at(indices)], torch.empty(10))
        with pytest.raises(ValueError, match=message):
            ops.union([at(indices), at([1])])


@each("name", KERNELS)
def test_disorder_between_tiles_is_seen(name: str, rng: torch.Generator) -> None:
    for _ in range(20):
        part = random_parts(1, 2000, 200_000, rng)[0]
        swapped = part.indices.clone()
        one, other = torch.randperm(2000, generator=rng)[:2].tolist()
        swapped[[one, other]] = swapped[[other, one]]
        with ops.use_backend(name), pytest.raises(ValueError, match=r"^parts must hold indices that ascend"):
            ops.scatter_mean([SparseGradient(swapped, part.values, 200_000)], torch.empty(200_000))


@each_backend
def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^parts must hold at least one sparse gradient, got none\."):
        ops.union([])
    with pytest.raises(ValueError, match=r"^parts must hold at least one sparse gradient, got none\."):
        ops.scatter_mean([], torch.empty(4))
    with pytest.raises(ValueError, match=r"^parts must be alike, got 11 entries of torch\.float32 on cpu in part 1"):
        ops.union([at([1]), at([1], 11)])
    double = SparseGradient(torch.tensor([1], dtype=torch.int32), torch.ones(1, dtype=torch.float64), 10)
    with pytest.raises(ValueError, match=r"^parts must be alike, got 10 entries of torch\.float64 on cpu in part 1"):
        ops.scatter_mean([at([1]), double], torch.empty(10))
    with pytest.raises(ValueError, match=r"^out must fit its parts of 10 entries of torch\.float32 on cpu, got 9 of"):
        ops.scatter_mean([at([1])], torch.empty(9))
    with pytest.raises(ValueError, match=r"^out must be flat and contiguous"):
        ops.scatter_mean([at([1])], torch.empty(20)[::2])
