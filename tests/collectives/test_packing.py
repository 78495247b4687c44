from __future__ import annotations

import pytest
import torch
from tests.each import each

from gaussiank.codec import Wire
from gaussiank.collectives.packing import (
    EXACT,
    largest_mask,
    member_mask,
    merge,
    pack,
    pick,
    quantize,
    rest_of,
    row_bytes,
    trailers,
    unpack,
)
from gaussiank.sparse import SparseGradient


def sparse(entries: dict[int, float], numel: int = 10, dtype: torch.dtype = torch.float32) -> SparseGradient:
    indices = torch.tensor(sorted(entries), dtype=torch.int32)
    return SparseGradient(indices, torch.tensor([entries[i] for i in sorted(entries)], dtype=dtype), numel)


@each("dtype", [torch.float32, torch.float64])
def test_rows_have_one_length_and_come_back(dtype: torch.dtype) -> None:
    parts = [sparse({1: 2.5, 9: -1.0}, dtype=dtype), sparse({}, dtype=dtype), sparse({0: 1e-30}, 4, dtype)]
    for wire in (EXACT, Wire("rice", "fp32"), Wire("chunks", "bf16")):
        rounds = [quantize(part, wire).sparse for part in parts]
        numbers = (7, -1, 2**40)
        length = wire.max_bytes(3, 10, dtype)
        rows = [pack(part, wire, 3, note, length) for part, note in zip(rounds, numbers, strict=True)]
        assert {row.numel() for row in rows} == {row_bytes(3, 10, wire, dtype, with_trailer=True)}
        assert trailers(torch.stack(rows)) == [7, -1, 2**40]
        assert_same(rounds, unpack(torch.stack(rows), wire, [10, 10, 4], dtype, 3))


def assert_same(parts: list[SparseGradient], back: list[SparseGradient]) -> None:
    for part, again in zip(parts, back, strict=True):
        assert torch.equal(again.indices, part.indices)
        assert torch.equal(again.values, part.values)


def test_a_row_of_another_length_of_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"payload must be of a vector of 11 entries, got one of 10\."):
        unpack([pack(sparse({1: 2.0}), EXACT, 1)], EXACT, [11], torch.float32, 1)


def test_merge_adds_in_the_given_order() -> None:
    parts = [sparse({3: 1e8}), sparse({3: 1.0, 5: 2.0}), sparse({3: -1e8, 0: 4.0}), sparse({})]
    total = merge(parts)
    assert total.check().dense().tolist() == [4.0, 0, 0, 0.0, 0, 2.0, 0, 0, 0, 0]  # (1e8 + 1) - 1e8 in float32
    assert merge([parts[0], parts[2], parts[1]]).dense()[3] == 1.0
    assert merge([sparse({}), sparse({})]).kept == 0


def test_largest_keeps_infinities_and_nan_first() -> None:
    entries = sparse({0: 1.0, 2: float("nan"), 4: -5.0, 6: float("-inf")})
    assert largest_mask(entries, 2).tolist() == [False, True, False, True]
    assert largest_mask(entries, 3).tolist() == [False, True, True, True]
    assert largest_mask(entries, 0).tolist() == [False] * 4
    assert largest_mask(entries, 9).tolist() == [True] * 4


def test_members_and_rest() -> None:
    entries = sparse({0: 1.0, 4: 2.0, 9: 3.0})
    entered = member_mask(entries.indices, among=torch.tensor([4, 5], dtype=torch.int32))
    assert entered.tolist() == [False, True, False]
    rest = rest_of(entries, entered)
    assert rest is not None
    assert rest.check().dense().tolist() == [1.0] + [0.0] * 8 + [3.0]
    assert rest_of(entries, torch.ones(3, dtype=torch.bool)) is None
    assert not member_mask(entries.indices, among=torch.zeros(0, dtype=torch.int32)).any()
    assert pick(entries, entered).dense()[4] == 2.0
