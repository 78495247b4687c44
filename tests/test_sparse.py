from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from tests.each import each

from gaussiank.sparse import MAX_NUMEL, SparseGradient


def sparse(indices: list[int], values: list[float], numel: int) -> SparseGradient:
    return SparseGradient(torch.tensor(indices, dtype=torch.int32), torch.tensor(values), numel)


def test_dense_spreads_entries_over_zeros() -> None:
    assert sparse([0, 3], [3.0, -1.5], 5).dense().tolist() == [3.0, 0.0, 0.0, -1.5, 0.0]


def test_dense_of_nothing_is_zeros() -> None:
    empty = sparse([], [], 3)
    assert empty.kept == 0
    assert empty.dense().tolist() == [0.0, 0.0, 0.0]


def test_dense_has_dtype_of_values() -> None:
    double = SparseGradient(torch.tensor([1], dtype=torch.int32), torch.tensor([0.1], dtype=torch.float64), 2)
    assert torch.equal(double.dense(), torch.tensor([0.0, 0.1], dtype=torch.float64))


def test_pick_takes_entries_and_length_of_the_vector(rng: torch.Generator) -> None:
    vector = torch.randn(1000, generator=rng)
    indices = torch.randperm(1000, generator=rng)[:50].sort().values.int()
    picked = SparseGradient.pick(vector, indices)
    assert torch.equal(picked.indices, indices)
    assert picked.values.tolist() == [float(vector[i]) for i in indices.tolist()]
    assert (picked.kept, picked.numel) == (50, 1000)


def test_pick_copies_values() -> None:
    vector = torch.tensor([1.0, 2.0])
    picked = SparseGradient.pick(vector, torch.tensor([1], dtype=torch.int32))
    vector.zero_()
    assert picked.values.tolist() == [2.0]


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'numel'"):
        sparse([0], [1.0], 1).numel = 2  # type: ignore[misc]


@each("numel", [0, -1, MAX_NUMEL + 1])
def test_refuses_length_that_int32_cannot_index(numel: int) -> None:
    message = f"numel must be in [1, 2147483647], got {numel}. Split the vector into parts."
    with pytest.raises(ValueError, match=re.escape(message)):
        sparse([], [], numel)


def test_takes_longest_length() -> None:
    assert sparse([MAX_NUMEL - 1], [1.0], MAX_NUMEL).check().numel == 2147483647


@each(
    ("indices", "got"),
    [
        (torch.tensor([0, 1]), "torch.int64 of shape (2,)"),
        (torch.tensor([[0, 1]], dtype=torch.int32), "torch.int32 of shape (1, 2)"),
        (torch.tensor(0, dtype=torch.int32), "torch.int32 of shape ()"),
    ],
    ids=["int64", "matrix", "scalar"],
)
def test_refuses_indices_that_are_not_flat_int32(indices: torch.Tensor, got: str) -> None:
    message = f"indices must be a flat int32 tensor, got {got}. Flatten and convert it."
    with pytest.raises(ValueError, match=re.escape(message)):
        SparseGradient(indices, torch.ones(indices.shape), 4)


def test_refuses_another_number_of_values() -> None:
    message = "values must have one entry for each index, got (3,) values for (2,) indices. Select both with the same"
    with pytest.raises(ValueError, match=re.escape(message)):
        sparse([0, 1], [1.0, 2.0, 3.0], 4)


def test_refuses_values_on_another_device() -> None:
    message = "values must be on the device of the indices, got meta and cpu. Move one of them."
    with pytest.raises(ValueError, match=re.escape(message)):
        SparseGradient(torch.tensor([0], dtype=torch.int32), torch.ones(1, device="meta"), 4)


@each("indices", [[], [0], [3], [0, 1, 2, 3], [1, 3]])
def test_check_returns_itself(indices: list[int]) -> None:
    good = sparse(indices, [1.0] * len(indices), 4)
    assert good.check() is good


@each(
    ("indices", "message"),
    [
        ([0, 2, 2], "indices must ascend without repeats, got 2 before 2 at position 1. Sort them and drop repeats."),
        ([3, 1, 0], "indices must ascend without repeats, got 3 before 1 at position 0. Sort them and drop repeats."),
        ([1, 4], "indices must be in [0, 4), got 4. Select from a vector of numel entries."),
        ([-1, 2], "indices must be in [0, 4), got -1. Select from a vector of numel entries."),
        ([-7], "indices must be in [0, 4), got -7."),
    ],
)
def test_check_names_the_first_broken_rule(indices: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sparse(indices, [1.0] * len(indices), 4).check()
