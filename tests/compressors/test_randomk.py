from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from tests.each import each

from gaussiank.compressors import RandomK, SelectContext

SMALL_K, LARGE_K = (100, 5), (40, 10)  # redrawn repeats below numel / 8, a permutation above


def drawn(compressor: RandomK, numel: int, k: int, **turn: int) -> list[int]:
    indices: list[int] = compressor.select(torch.ones(numel), k, SelectContext(**turn)).indices.tolist()  # type: ignore[arg-type]
    return indices


@each(("numel", "k"), [SMALL_K, LARGE_K])
@each("shared", [False, True], ids=["own", "shared"])
def test_every_index_is_equally_likely(numel: int, k: int, shared: bool) -> None:
    rounds = 4000
    counts = np.zeros(numel)
    for step in range(rounds):
        counts[drawn(RandomK(shared=shared), numel, k, step=step)] += 1
    share = k / numel
    deviation = (counts - rounds * share) / np.sqrt(rounds * share * (1 - share))
    assert np.abs(deviation).max() < 4.5  # of 100 normal deviates, once in 1,500 seeds
    assert 0.6 < (deviation**2).mean() < 1.4


def test_every_pair_is_equally_likely() -> None:
    numel, rounds = 17, 6000  # k = 2 is below numel / 8
    pairs = Counter(tuple(drawn(RandomK(), numel, 2, step=step)) for step in range(rounds))
    assert set(pairs) == set(itertools.combinations(range(numel), 2))
    expected = rounds / 136
    chi_square = sum((count - expected) ** 2 / expected for count in pairs.values())
    assert 70 < chi_square < 215  # mean 135, standard deviation 16


@each(("numel", "k"), [(1, 1), (8, 1), (9, 1), (100, 12), (100, 13), (100, 100), (10_000, 1249)])
def test_draws_exactly_k_without_repeats(numel: int, k: int) -> None:
    for step in range(20):
        indices = drawn(RandomK(), numel, k, step=step)
        assert len(indices) == k
        assert indices == sorted(set(indices))
        assert 0 <= indices[0] <= indices[-1] < numel


def test_expectation_of_the_paper() -> None:
    vector = torch.tensor([3.0, -1.0, 2.0, 0.5])
    total = float(vector.square().sum())
    subsets = [sum(float(vector[i]) ** 2 for i in pair) for pair in itertools.combinations(range(4), 2)]
    assert total - sum(subsets) / 6 == 7.125
    errors = []
    for seed in range(4000):
        indices = RandomK(seed=seed).select(vector, 2).indices
        errors.append(total - float(vector[indices].square().sum()))
    assert set(errors) == {total - kept for kept in subsets}
    assert np.mean(errors) == pytest.approx(7.125, abs=4 * np.std(subsets) / np.sqrt(4000))


@each(("numel", "k"), [SMALL_K, LARGE_K])
def test_draws_are_told_apart_by_seed_step_part_and_rank(numel: int, k: int) -> None:
    draws = [
        drawn(RandomK(seed=seed), numel, k, step=step, part=part, rank=rank)
        for seed, step, part, rank in itertools.product(range(3), repeat=4)
    ]
    assert len({tuple(draw) for draw in draws}) == 81


@each(("numel", "k"), [SMALL_K, LARGE_K])
def test_shared_draws_do_not_depend_on_rank(numel: int, k: int) -> None:
    draws = [drawn(RandomK(shared=True), numel, k, step=step, rank=rank) for step in range(5) for rank in range(4)]
    assert [draws.count(draw) for draw in draws] == [4] * 20
    assert len({tuple(draw) for draw in draws}) == 5


@each(("numel", "k"), [SMALL_K, LARGE_K])
def test_draws_repeat_and_leave_global_generators_alone(numel: int, k: int) -> None:
    torch.manual_seed(1)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002  the global one
    first = drawn(RandomK(), numel, k, step=3, part=2**32 - 1, rank=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002
    torch.manual_seed(2)
    assert drawn(RandomK(), numel, k, step=3, part=2**32 - 1, rank=1) == first


def test_draws_do_not_depend_on_the_values(rng: torch.Generator) -> None:
    vector = torch.randn(1000, generator=rng)
    assert torch.equal(RandomK().select(vector, 10).indices, RandomK().select(torch.zeros(1000), 10).indices)


@each("seed", [-1, 1, 2**40, -(2**63)])
def test_takes_any_seed(seed: int) -> None:
    assert drawn(RandomK(seed=seed), 100, 5) == drawn(RandomK(seed=seed), 100, 5) != drawn(RandomK(), 100, 5)


def test_work_grows_with_k_not_with_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    permute = torch.randperm

    def counting(numel: int, **options: object) -> torch.Tensor:
        lengths.append(numel)
        return permute(numel, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "randperm", counting)
    RandomK().select(torch.zeros(1_000_000), 10)
    assert lengths
    assert max(lengths) < 100


def test_rest_is_kept_unless_feedback_is_off() -> None:
    assert RandomK().keeps_rest
    assert not RandomK(feedback=False).keeps_rest
    assert RandomK().capacity(7, 100) == 7
