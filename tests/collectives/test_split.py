from __future__ import annotations

import pytest
import torch

from gaussiank.collectives.split import Split, _cut, _rebalanced
from gaussiank.sparse import SparseGradient


def test_equal_load_keeps_equal_borders() -> None:
    indices = [torch.arange(0, 100), torch.arange(100, 200), torch.arange(200, 300)]
    assert _rebalanced([0, 100, 200, 300], indices, [100, 100, 100]).tolist() == [0, 100, 200, 300]


def test_borders_move_to_the_load() -> None:
    indices = [torch.arange(0, 40), torch.tensor([150]), torch.tensor([250])]
    borders = _rebalanced([0, 100, 200, 300], indices, [40, 1, 1]).tolist()
    assert borders == [0, 14, 28, 300]


def test_a_region_that_was_cut_counts_with_all_that_was_to_come() -> None:
    indices = [torch.arange(0, 10), torch.arange(100, 110)]
    assert _rebalanced([0, 100, 200], indices, [1000, 10]).tolist() == [0, 6, 200]


@pytest.mark.parametrize("borders", [[0, 7], [0, 3, 3, 7], [0, 0, 0, 7]])
def test_nothing_gathered_leaves_borders_alone(borders: list[int]) -> None:
    empty = [torch.zeros(0, dtype=torch.int32)] * (len(borders) - 1)
    assert _rebalanced(borders, empty, [0] * len(empty)).tolist() == borders


def test_borders_stay_in_order_when_one_entry_carries_all() -> None:
    indices = [torch.tensor([2]), *[torch.zeros(0, dtype=torch.int64)] * 3]
    assert _rebalanced([0, 5, 6, 7, 8], indices, [9, 0, 0, 0]).tolist() == [0, 3, 3, 3, 8]


def test_cut_keeps_the_largest_of_each_region_and_says_what_is_in() -> None:
    sparse = SparseGradient(
        torch.tensor([0, 2, 3, 7, 9], dtype=torch.int32), torch.tensor([1.0, -3.0, 2.0, 5.0, 4.0]), 10
    )
    parts, wanted, sent = _cut(sparse, [0, 5, 5, 10], room=2)
    assert [part.indices.tolist() for part in parts] == [[2, 3], [], [2, 4]]
    assert [part.numel for part in parts] == [5, 1, 5]
    assert wanted == [3, 0, 2]
    assert sent.tolist() == [False, True, True, True, True]


def test_borders_of_another_length_or_number_of_workers_are_not_used() -> None:
    split = Split()
    assert split._borders(torch.tensor([0, 1, 10]), 10, 2) == [0, 1, 10]
    assert split._borders(torch.tensor([0, 1, 11]), 10, 2) == [0, 5, 10]
    assert split._borders(torch.tensor([0, 1, 2, 10]), 10, 2) == [0, 5, 10]
    assert Split(rebalance=False)._borders(torch.tensor([0, 1, 10]), 10, 2) == [0, 5, 10]
