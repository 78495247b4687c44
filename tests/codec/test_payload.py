"""Payloads that are damaged, hostile, foreign, old or new."""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.codec.conftest import each_backend
from tests.each import each

from gaussiank import codec
from gaussiank.codec import INDEX_CODES, VALUE_CODES, SharedDraw, Wire
from gaussiank.codec.indices import RETIRED_CODES
from gaussiank.codec.payload import HEADER_BYTES, Codes, write
from gaussiank.ops import use_backend
from gaussiank.sparse import MAX_NUMEL, SparseGradient

FIXTURES = Path(__file__).parent.parent / "fixtures"
WIRES = [Wire(index, values) for index in INDEX_CODES for values in VALUE_CODES]


def thirds(numel: int, count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32) * 3


SHARED = SharedDraw(seed=5, step=6, part=7, draw=thirds)


def example(wire: Wire, count: int = 70, numel: int = 70_000, far: int = 1) -> SparseGradient:
    """Make what ``payload_v2_*.hex`` hold: no generator, so that it never changes; ``far``: factor of some gaps."""
    numbers = torch.arange(count)
    gaps = (numbers * numbers * 7919) % 97 if wire.index != "seed" else torch.full((count,), 2)
    gaps[3:40:9] *= far
    indices = ((gaps + 1).cumsum(0) - (3 if wire.index == "seed" else 1)).int()
    values = torch.where(numbers % 3 == 0, -1.0, 1.0) * (1 + (numbers * 37 % 101) / 64)
    values = values.double() if wire.values == "fp64" else values
    return SparseGradient(indices, wire.round(values), numel)


def with_checksum(payload: torch.Tensor) -> torch.Tensor:
    """Correct the checksum, as whoever damages a payload on purpose would; of a well-formed length only."""
    data = bytearray(payload.tolist())
    if len(data) < HEADER_BYTES:
        return payload
    codes, numel, count, index_bytes = struct.unpack("<BIII", data[3:16])
    value = {code.number: code for code in VALUE_CODES.values()}.get(codes >> 3 & 15)
    index = {code.number: code for code in (*INDEX_CODES.values(), *RETIRED_CODES)}.get(codes & 7)
    slots = count
    if index is not None and index_bytes >= index.least_bytes(0, max(numel, 1)):
        with contextlib.suppress(ValueError):
            slots = index.slots(index_bytes, count, max(numel, 1))
    end = HEADER_BYTES + index_bytes + (value.bytes_for(slots) if value is not None else 0)
    data[16:20] = struct.pack("<I", zlib.crc32(bytes(data[20:end]), zlib.crc32(bytes(data[:16]))))
    return torch.tensor(data, dtype=torch.uint8)


def outcome(payload: torch.Tensor) -> tuple[list[int], list[float], int] | str:
    """Decode: what came out, checked for order and range, or the error."""
    try:
        sparse = codec.decode(payload, shared=SHARED)
    except ValueError as error:
        return str(error)
    sparse.check()
    return sparse.indices.tolist(), sparse.values.nan_to_num(nan=7e30).tolist(), sparse.numel


def both(payload: torch.Tensor) -> tuple[list[int], list[float], int] | str:
    """Decode with both backends, which must agree."""
    got = outcome(payload)
    with use_backend("reference"):
        want = outcome(payload)
    if isinstance(got, str):  # which of several damages is seen first may differ
        assert isinstance(want, str)
    else:
        assert got == want
    return got


# ---------------------------------------------------------------------- formats that must decode for ever


def stored(name: str, values: str) -> torch.Tensor:
    lines = (FIXTURES / f"payload_v2_{name}.hex").read_text(encoding="utf-8").splitlines()
    payload = bytes.fromhex(dict(line.split() for line in lines)[values])
    return torch.tensor(bytearray(payload), dtype=torch.uint8)


@each_backend
@each("wire", WIRES, ids=str)
def test_bytes_of_released_formats_decode_for_ever(wire: Wire, backend: str) -> None:
    both_kinds = wire.index == "rice"  # the first block in gamma, the second in unary
    payload = stored("rice_gamma" if both_kinds else wire.index, wire.values)
    want = example(wire, far=40 if both_kinds else 1)
    got = codec.decode(payload, 70_000, shared=SHARED)
    assert torch.equal(got.indices, want.indices)
    assert torch.equal(got.values, want.values)
    assert torch.equal(wire.encode(want, shared=SHARED), payload)
    if both_kinds:
        heads = int(payload[HEADER_BYTES]) | int(payload[HEADER_BYTES + 1]) << 8
        assert (heads >> 5 & 1, heads >> 11 & 1) == (1, 0)


def retired(values: str, count: int = 70) -> torch.Tensor:
    """Write what earlier releases did for the wire ``rice``."""
    return write(example(Wire("rice", values), count), Codes(RETIRED_CODES[0], VALUE_CODES[values]), count)


@each_backend
def test_what_earlier_releases_wrote_decodes_for_ever(backend: str) -> None:
    for values in VALUE_CODES:
        wire, payload = Wire("rice", values), stored("rice", values)
        want = example(wire)
        for got in (codec.decode(payload), wire.decode(payload), wire.decode(payload, 70_000, dtype=want.values.dtype)):
            assert torch.equal(got.indices, want.indices)
            assert torch.equal(got.values, want.values)
        assert int(payload[3]) & 7 == 1
        assert torch.equal(retired(values), payload)
        assert int(wire.encode(want)[3]) & 7 == 5  # a number that they refuse


def test_format_1_decodes_for_ever() -> None:
    lines = (FIXTURES / "payload_v1.hex").read_text(encoding="utf-8").split()
    payloads = [torch.tensor(bytearray(bytes.fromhex(line)), dtype=torch.uint8) for line in lines]
    first, second = (codec.decode(payload, 6 if i == 0 else None) for i, payload in enumerate(payloads))
    assert (first.indices.tolist(), first.values.tolist(), first.numel) == ([1, 4], [2.5, -1.0], 6)
    assert second.values.dtype == torch.float64


# ---------------------------------------------------------------------- foreign, truncated, damaged


@each(
    ("at", "value", "message"),
    [
        (0, 3, "payload must have wire version 1 or 2, got 3. Use one gaussiank on all workers."),
        (0, 0, "payload must have wire version 1 or 2, got 0. Use one gaussiank on all workers."),
        (1, 0, "payload must begin with the gaussiank magic number"),
        (2, 0x48, "payload must begin with the gaussiank magic number"),
        (3, 7 | 2 << 3, "payload must have known codes, got index code 7 and value code 2"),
        (3, 1 | 15 << 3, "payload must have known codes, got index code 1 and value code 15"),
        (7, 255, f"payload must name a numel in [1, {MAX_NUMEL}] and no more entries, got numel"),
        (11, 1, f"payload must name a numel in [1, {MAX_NUMEL}] and no more entries, got numel 70000 and"),
        (10, 1, "payload must hold the entries that its header counts, got fewer"),
        (15, 1, "payload must hold the entries that its header counts, got fewer"),
        (4, 0x71, "payload must match its checksum, got another"),
        (16, 0, "payload must match its checksum, got another"),
        (3, 5 | 8 << 3 | 0x80, "payload must have no checksum where its header says so, got one."),
        (30, 0, "payload must match its checksum, got another"),
    ],
)
def test_refuses_a_wrong_byte(at: int, value: int, message: str) -> None:
    payload = Wire().encode(example(Wire()))
    assert int(payload[at]) != value
    payload[at] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        codec.decode(payload)


@each_backend
@each("wire", WIRES, ids=str)
def test_refuses_every_truncation_and_every_flipped_byte(wire: Wire, backend: str) -> None:
    payload = wire.encode(example(wire), shared=SHARED)
    for size in {*range(0, HEADER_BYTES + 4), *range(HEADER_BYTES, payload.numel(), 13), payload.numel() - 1}:
        with pytest.raises(ValueError, match="payload must"):
            codec.decode(payload[:size], shared=SHARED)
    for at in {*range(HEADER_BYTES), *range(HEADER_BYTES, payload.numel(), 13)}:
        damaged = payload.clone()
        damaged[at] ^= 0x55
        with pytest.raises(ValueError, match=r"(payload|indices) must"):
            codec.decode(damaged, shared=SHARED)


def test_refuses_what_is_no_payload() -> None:
    for wrong in (torch.zeros(40), torch.zeros(2, 20, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="payload must be a flat uint8 tensor, got"):
            codec.decode(wrong)
        with pytest.raises(ValueError, match="payload must be a flat uint8 tensor, got"):
            Wire().decode(wrong)
    with pytest.raises(ValueError, match="payload must"):
        codec.decode(torch.empty(0, dtype=torch.uint8))


def test_refuses_another_length_or_wire() -> None:
    payload = Wire().encode(example(Wire()))
    for decode in (codec.decode, Wire().decode):
        with pytest.raises(ValueError, match="payload must be of a vector of 70001 entries, got one of 70000"):
            decode(payload, 70_001)
    with pytest.raises(ValueError, match=re.escape("payload must be coded as eliasfano+bf16, got rice+bf16")):
        Wire("eliasfano", "bf16").decode(payload)


@each("wire", [wire for wire in WIRES if wire.index != "seed"], ids=str)
def test_reads_nothing_before_the_payload_is_long_enough(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("memory was asked for")

    for code in (*INDEX_CODES.values(), *VALUE_CODES.values()):
        monkeypatch.setattr(type(code), "decode", decode)
    value, index = VALUE_CODES[wire.values], INDEX_CODES[wire.index]
    codes = index.number | value.number << 3 | 0x80
    for count in (2000, 10**5, MAX_NUMEL):
        for index_bytes in (0, 80, 100, 2**32 - 1):
            head = struct.pack("<B2sBIIII", 2, b"KG", codes, MAX_NUMEL, count, index_bytes, 0)
            hostile = torch.tensor(bytearray(head + bytes(100)), dtype=torch.uint8)
            with pytest.raises(ValueError, match="payload must hold"):
                codec.decode(hostile)


@each("wire", WIRES, ids=str)
def test_a_payload_without_checksum_is_checked_all_the_same(wire: Wire) -> None:
    payload = wire.encode(example(wire), shared=SHARED)
    payload[3] |= 0x80
    payload[16:20] = 0
    assert both(payload) == both(wire.encode(example(wire), shared=SHARED))


NUMBERS = [index.number | value.number << 3 for index in INDEX_CODES.values() for value in VALUE_CODES.values()]


def mutated(payload: torch.Tensor, data: st.DataObject) -> torch.Tensor:
    """Damage a payload once: a byte, a number of the header, its length, or its codes."""
    kind = data.draw(st.sampled_from(["byte", "number", "cut", "grow", "codes"]))
    size = payload.numel()
    if kind == "byte":
        payload[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    elif kind == "number" and size >= HEADER_BYTES:
        at = data.draw(st.sampled_from([4, 8, 12]))
        likely = st.sampled_from([0, size, size - HEADER_BYTES, 70_000, MAX_NUMEL])
        number = data.draw(st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1), likely))
        payload[at : at + 4] = torch.tensor(bytearray(struct.pack("<I", number)), dtype=torch.uint8)
    elif kind == "cut":
        payload = payload[: max(1, size - data.draw(st.integers(1, 40)))]
    elif kind == "grow":
        payload = torch.cat([payload, torch.full((data.draw(st.integers(1, 40)),), 255, dtype=torch.uint8)])
    elif kind == "codes" and size > 3:
        payload[3] = data.draw(st.sampled_from(NUMBERS))
    return payload


@each("index", [*INDEX_CODES, "retired"])
@settings(max_examples=300)
@given(st.data())
def test_no_mutation_crashes_or_passes_unordered(index: str, data: st.DataObject) -> None:
    values, count = data.draw(st.sampled_from(sorted(VALUE_CODES))), data.draw(st.sampled_from([0, 1, 3, 64, 70]))
    if index == "retired":
        payload = retired(values, count)
    else:
        wire = Wire(index, values)
        far = data.draw(st.sampled_from([1, 40])) if index != "seed" else 1
        payload = wire.encode(example(wire, count, far=far), shared=SHARED)
    for _ in range(data.draw(st.integers(1, 4))):
        payload = mutated(payload, data)
    both(with_checksum(payload))
