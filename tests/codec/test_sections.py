"""Indices and values as messages of their own, with each code, in both backends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.codec.conftest import each_backend
from tests.each import each

from gaussiank.codec import INDEX_CODES, VALUE_CODES, Wire
from gaussiank.codec.sections import (
    indices_bytes,
    read_indices,
    read_values,
    values_bytes,
    write_indices,
    write_values,
)

INDICES = [name for name in INDEX_CODES if name != "seed"]
NUMEL = 200_000


@each_backend
@each("name", INDICES)
@each("count", [0, 1, 64, 1000])
def test_indices_come_back_from_a_row_of_known_length(
    name: str, count: int, choose: Callable[[int, int], torch.Tensor]
) -> None:
    wire, indices = Wire(name, "bf16"), choose(NUMEL, count)
    for room in (count, count + 7):
        row = write_indices(wire, indices, NUMEL, room)
        assert row.numel() == indices_bytes(wire, room, NUMEL)
        assert torch.equal(read_indices(wire, row, NUMEL), indices)


@each_backend
@each("name", INDICES)
def test_damaged_indices_are_refused(name: str, choose: Callable[[int, int], torch.Tensor]) -> None:
    wire = Wire(name, "bf16")
    row = write_indices(wire, choose(NUMEL, 100), NUMEL, 100)
    row[40] ^= 4
    with pytest.raises(ValueError, match=r"^indices must match their checksum, got another\."):
        read_indices(wire, row, NUMEL)
    for first in (255, 0):  # a count above numel; a section longer than the row
        row[:4] = first
        row[4:8] = 255 - first
        with pytest.raises(ValueError, match="payload must"):
            read_indices(wire, row, NUMEL)


@each_backend
@each("name", VALUE_CODES)
@each("dtype", [torch.float32, torch.float64])
@each("count", [0, 1, 100])
def test_rounded_values_come_back_to_the_bit(name: str, dtype: torch.dtype, count: int, rng: torch.Generator) -> None:
    if (name == "fp64") != (dtype == torch.float64 and name in ("fp32", "fp64")):
        return  # the exact code follows the dtype
    wire = Wire("rice", "fp32" if name == "fp64" else name)
    values = wire.round(torch.randn(count, generator=rng, dtype=dtype))
    section = write_values(wire, values, 128)
    plain = VALUE_CODES[name].plain or name  # shares have a fixed size
    assert section.numel() == values_bytes(wire, 128, dtype) == VALUE_CODES[plain].bytes_for(128)
    back = read_values(wire, section, count, 128, dtype)
    assert back.dtype == dtype
    assert torch.equal(back, values)
