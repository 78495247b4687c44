from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.each import each

from gaussiank.codec import decode, encode, entries_within, payload_bytes, payload_v1
from gaussiank.codec.payload_v1 import V1_HEADER_BYTES
from gaussiank.ops import select_topk
from gaussiank.sparse import SparseGradient

MAGIC = 0x474B01
DTYPES = {4: torch.float32, 8: torch.float64}


def sparse(entries: dict[int, float], numel: int, dtype: torch.dtype = torch.float32) -> SparseGradient:
    return SparseGradient(
        torch.tensor(list(entries), dtype=torch.int32), torch.tensor(list(entries.values()), dtype=dtype), numel
    )


def payload(*header: int, body: bytes = b"") -> torch.Tensor:
    return torch.tensor(list(struct.pack("<4i", *header) + body), dtype=torch.uint8)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


# ---------------------------------------------------------------------- there and back


@each("dtype", DTYPES.values(), ids=str)
@each("kept", [0, 1, 2, 63, 100])
@each("padding", [None, 0, 1, 37])
def test_what_goes_in_comes_out(rng: torch.Generator, dtype: torch.dtype, kept: int, padding: int | None) -> None:
    vector = torch.randn(100, generator=rng, dtype=dtype)
    sent = SparseGradient.pick(vector, select_topk(vector, kept) if kept else torch.empty(0, dtype=torch.int32))
    written = encode(sent) if padding is None else encode(sent, kept + padding)
    assert written.dtype == torch.uint8
    assert written.shape == (payload_bytes(kept + (padding or 0), dtype.itemsize),)
    read = decode(written, numel=100, dtype=dtype)
    assert torch.equal(read.indices, sent.indices)
    assert same_bits(read.values, sent.values)
    assert read.numel == 100
    assert torch.equal(decode(written, dtype=dtype).dense(), sent.dense())  # the header knows the length


def test_every_bit_of_a_value_arrives() -> None:
    values = [math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-45, 3.4028235e38, -1.1754944e-38]
    sent = sparse(dict(enumerate(values)), 8)
    sent.values.view(torch.int32)[0] = 0x7FC0_1234  # a NaN with a payload of its own
    assert same_bits(decode(encode(sent)).values, sent.values)


def test_longest_vector() -> None:
    sent = sparse({0: 1.0, 2**31 - 2: 2.0}, 2**31 - 1)
    read = decode(encode(sent, capacity=3), numel=2**31 - 1)
    assert read.indices.tolist() == [0, 2147483646]
    assert read.numel == 2147483647


def test_unused_room_adds_nothing_even_when_read() -> None:
    written = encode(sparse({1: 2.5}, 6), capacity=4)
    body = written[V1_HEADER_BYTES:]
    assert body[:16].view(torch.float32).tolist() == [2.5, 0.0, 0.0, 0.0]
    assert body[16:].view(torch.int32).tolist() == [1, 5, 5, 5]


@given(st.dictionaries(st.integers(0, 999), st.floats(width=32), max_size=40), st.integers(0, 20))
def test_round_trip_of_anything(entries: dict[int, float], padding: int) -> None:
    sent = sparse(dict(sorted(entries.items())), 1000)
    read = decode(encode(sent, len(entries) + padding))
    assert torch.equal(read.indices, sent.indices)
    assert same_bits(read.values, sent.values)


@each("dtype", DTYPES.values(), ids=str)
@each("offset", [0, 1, 2, 3, 4, 5, 6, 7, 8, 12])
def test_payload_may_lie_anywhere(offset: int, dtype: torch.dtype) -> None:
    sent = sparse({1: 2.5, 4: -0.1}, 6, dtype)
    moved = torch.cat([torch.zeros(offset, dtype=torch.uint8), encode(sent, capacity=3)])[offset:]
    read = decode(moved, numel=6, dtype=dtype)
    assert torch.equal(read.indices, sent.indices)
    assert same_bits(read.values, sent.values)


def test_rows_of_a_gathered_matrix_are_payloads() -> None:
    parts = [sparse({rank: float(rank)}, 9) for rank in range(4)]
    gathered = torch.stack([encode(part, capacity=2) for part in parts])
    assert [decode(row, 9).dense().tolist() for row in gathered] == [part.dense().tolist() for part in parts]


def test_accelerator_payload_is_read_without_its_header() -> None:
    read = decode(torch.zeros(payload_bytes(5), dtype=torch.uint8, device="meta"), numel=7)
    assert (read.kept, read.numel, read.values.dtype, read.values.device.type) == (5, 7, torch.float32, "meta")


# ---------------------------------------------------------------------- the bytes of version 1


def test_bytes_of_version_1_are_written(fixtures: Path) -> None:
    single, double = (fixtures / "payload_v1.hex").read_text(encoding="utf-8").split()
    assert bytes(encode(sparse({1: 2.5, 4: -1.0}, 6), capacity=3).tolist()).hex() == single
    assert bytes(encode(sparse({1: 2.5, 4: -0.1}, 6, torch.float64), capacity=3).tolist()).hex() == double


def test_bytes_of_version_1_are_read(fixtures: Path) -> None:
    single, double = (fixtures / "payload_v1.hex").read_text(encoding="utf-8").split()
    for written, value, dtype in ((single, -1.0, torch.float32), (double, -0.1, torch.float64)):
        read = decode(torch.tensor(list(bytes.fromhex(written)), dtype=torch.uint8), numel=6, dtype=dtype)
        assert read.indices.tolist() == [1, 4]
        assert same_bits(read.values, torch.tensor([2.5, value], dtype=dtype))
        assert read.numel == 6


def test_header_is_magic_and_version_numel_kept_and_value_bytes() -> None:
    header = bytes(encode(sparse({7: 1.0}, 70_000), capacity=9)[:V1_HEADER_BYTES].tolist())
    assert header == b"\x01KG\x00" + struct.pack("<3i", 70_000, 1, 4)


@given(capacity=st.integers(1, 10**9), value_bytes=st.sampled_from([4, 8]), surplus=st.integers(0, 7))
def test_size_and_capacity_are_inverse(capacity: int, value_bytes: int, surplus: int) -> None:
    size = payload_bytes(capacity, value_bytes)
    assert size == 16 + capacity * (value_bytes + 4)
    assert entries_within(size + surplus, value_bytes) == capacity
    if capacity > 1:
        assert entries_within(size - 1, value_bytes) == capacity - 1


# ---------------------------------------------------------------------- what is refused


@each(("max_bytes", "value_bytes", "least"), [(23, 4, 24), (27, 8, 28), (0, 4, 24), (-5, 4, 24)])
def test_refuses_a_budget_without_room(max_bytes: int, value_bytes: int, least: int) -> None:
    message = f"max_bytes must be at least {least}, a header and one entry, got {max_bytes}. Raise it."
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        entries_within(max_bytes, value_bytes)
    assert entries_within(least, value_bytes) == 1


@each("capacity", [0, 1])
def test_refuses_more_entries_than_room(capacity: int) -> None:
    message = f"capacity must be at least the 2 entries kept, got {capacity}. Cap the compressor."
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        encode(sparse({1: 2.5, 4: -1.0}, 6), capacity)


@each("dtype", [torch.bfloat16, torch.float16, torch.int32], ids=str)
def test_refuses_values_without_a_format(dtype: torch.dtype) -> None:
    message = f"values must be float32 or float64, got {dtype}. Convert them."
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        encode(sparse({1: 2}, 6, dtype))


ROOM = bytes(8)
DAMAGED: dict[str, tuple[torch.Tensor, str]] = {
    "foreign": (
        payload(0x12345601, 6, 1, 4, body=ROOM),
        "payload must begin with the gaussiank magic number, got 0x12",
    ),
    "zeros": (payload(0, 0, 0, 0), "payload must begin with the gaussiank magic number, got 0x0. It is no payload of"),
    "negative magic": (payload(-5, 6, 1, 4), "payload must begin with the gaussiank magic number, got -0x5."),
    "version 2": (
        payload(0x474B02, 6, 1, 4, body=ROOM),
        "payload must have wire version 1, got 2. Use one gaussiank on all workers.",
    ),
    "version 0": (payload(0x474B00, 6, 1, 4, body=ROOM), "payload must have wire version 1, got 0. Use one gaussiank"),
    "no header": (torch.zeros(15, dtype=torch.uint8), "payload must be uint8 with a header of 16 bytes, got 15 bytes."),
    "nothing": (
        torch.zeros(0, dtype=torch.uint8),
        "payload must be uint8 with a header of 16 bytes, got 0 bytes. Pass",
    ),
    "no bytes": (torch.zeros(24), "payload must be uint8 with a header of 16 bytes, got 24 bytes. Pass it whole."),
    "one short": (
        payload(MAGIC, 6, 1, 4, body=ROOM[:7]),
        "payload must hold the 1 entries its header names, got 23 bytes. It is damaged.",
    ),
    "no body": (
        payload(MAGIC, 6, 1, 4),
        "payload must hold the 1 entries its header names, got 16 bytes. It is damaged.",
    ),
    "kept too large": (
        payload(MAGIC, 6, 3, 4, body=ROOM * 2),
        "payload must hold the 3 entries its header names, got 32 bytes. It is damaged.",
    ),
    "kept negative": (
        payload(MAGIC, 6, -1, 4, body=ROOM),
        "payload must hold the -1 entries its header names, got 24 bytes. It is damaged.",
    ),
    "values of 2 bytes": (
        payload(MAGIC, 6, 0, 2),
        "payload must hold the 0 entries its header names, got 16 bytes. It is damaged.",
    ),
    "values of -4 bytes": (
        payload(MAGIC, 6, 0, -4),
        "payload must hold the 0 entries its header names, got 16 bytes. It is damaged.",
    ),
    "another vector": (
        payload(MAGIC, 7, 1, 4, body=ROOM),
        "payload must be of a vector of 6 entries, got one of 7. Workers disagree on the model.",
    ),
    "negative length": (
        payload(MAGIC, -7, 1, 4, body=ROOM),
        "payload must be of a vector of 6 entries, got one of -7. Workers disagree on the model.",
    ),
}


@each("case", DAMAGED)
def test_refuses_a_damaged_payload(case: str) -> None:
    damaged, message = DAMAGED[case]
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        payload_v1.decode(damaged, numel=6)


@each("cut", range(1, 24))
def test_refuses_a_truncated_payload(cut: int) -> None:
    written = encode(sparse({0: 1.0}, 4))
    sentence = "must be uint8 with a header" if cut > 8 else "must hold the 1 entries its header names"
    with pytest.raises(ValueError, match=f"^payload {sentence}.*, got {24 - cut} bytes"):
        decode(written[:-cut])


def test_refuses_a_length_of_zero_in_the_header() -> None:
    with pytest.raises(ValueError, match=r"^numel must be in \[1, 2147483647\], got 0\."):
        decode(payload(MAGIC, 0, 0, 4))


def test_accelerator_payload_needs_a_length() -> None:
    message = "numel must be given for a payload on an accelerator, got None. Pass the bucket's length."
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        decode(torch.zeros(24, dtype=torch.uint8, device="meta"))


@each(("sent", "expected"), [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str)
def test_refuses_values_of_another_dtype_than_expected(sent: torch.dtype, expected: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"^payload must"):
        decode(encode(sparse({0: 1.0}, 4, sent)), numel=4, dtype=expected)


WORDS = st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-9, 40))


@given(
    header=st.one_of(
        st.binary(max_size=24),
        st.builds(
            lambda *words: struct.pack("<4i", *words), st.just(MAGIC), WORDS, WORDS, st.sampled_from([4, 8, 0, -4])
        ),
        st.builds(lambda *words: struct.pack("<4i", *words), WORDS, WORDS, WORDS, WORDS),
    ),
    body=st.binary(max_size=200),
    numel=st.one_of(st.none(), st.integers(1, 40)),
)
@example(header=struct.pack("<4i", MAGIC, 6, 1, 4), body=bytes(8), numel=None)
@example(header=struct.pack("<4i", MAGIC, 6, 2**31 - 1, 8), body=bytes(12), numel=6)
def test_random_bytes_decode_or_raise_value_error(header: bytes, body: bytes, numel: Any) -> None:
    written = torch.tensor(list(header + body), dtype=torch.uint8)
    try:
        read = decode(written, numel)
    except ValueError as error:
        assert re.match(r"(payload|numel) must .*, got .*\. \w", str(error))  # noqa: PT017  not raising is fine too
    else:
        room = len(header + body) - V1_HEADER_BYTES
        assert room == 0 or read.kept * (4 + read.values.element_size()) <= room
        assert numel in (None, read.numel)
        assert read.indices.shape == read.values.shape
