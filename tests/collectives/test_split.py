from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import torch
from tests.each import each

from gaussiank.codec import INDEX_CODES, VALUE_CODES, Wire
from gaussiank.collectives.base import ExchangeContext
from gaussiank.collectives.split import Frames, Split, _cut, _rebalanced
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


@each("borders", [[0, 7], [0, 3, 3, 7], [0, 0, 0, 7]])
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


def test_room_for_the_widest_region_is_enough_for_every_other_one(rng: torch.Generator) -> None:
    """Rows of one exchange must have one length, wherever the borders lie and whatever each region holds."""
    comm: Any = SimpleNamespace(rank=0, world_size=4)
    for index, values in itertools.product([name for name in INDEX_CODES if name != "seed"], VALUE_CODES):
        context = ExchangeContext(comm, Wire(index, values))
        dtype = torch.float64 if values == "fp64" else torch.float32
        for numel, kept, room in ((31, 12, 4), (31, 31, 4), (97, 20, 7), (97, 3, 1), (4096, 300, 100)):
            for _ in range(4):
                inner = torch.randint(numel + 1, (3,), generator=rng).sort().values.tolist()
                borders = [0, *inner, numel]
                entries = torch.randn(kept, generator=rng, dtype=dtype)
                places = torch.randperm(numel, generator=rng)[:kept].sort().values.int()
                parts, wanted, _ = _cut(SparseGradient(places, entries, numel), borders, room)
                most = context.wire.max_bytes(room, max(part.numel for part in parts), dtype)
                frames = Frames.after(context, room, most)
                rows = [frames.pack(part, context, 0, load) for part, load in zip(parts, wanted, strict=True)]
                assert {row.bytes.numel() for row in rows} == {most + 8}, (index, values, borders)
                assert all(row.mask is None for row in rows), (index, values, borders)
