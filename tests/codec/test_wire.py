from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.codec.conftest import each_backend
from tests.each import each

from gaussiank.codec import INDEX_CODES, VALUE_CODES, SharedDraw, Wire
from gaussiank.codec.indices import DeviceCode
from gaussiank.codec.payload import HEADER_BYTES, read_unchecked
from gaussiank.ops import use_backend
from gaussiank.ops.dispatch import kernels
from gaussiank.sparse import MAX_NUMEL, SparseGradient

Make = Callable[..., SparseGradient]
Drawn = Callable[[SparseGradient], SharedDraw]
WIRES = [Wire(index, values) for index in INDEX_CODES for values in VALUE_CODES if values != "fp64"]
FIXED = [name for name, code in VALUE_CODES.items() if not code.varies]
SIZES = [
    (1, 0),
    (1, 1),
    (2, 1),
    (63, 63),
    (64, 64),
    (150, 65),
    (700, 700),
    (65537, 129),
    (MAX_NUMEL, 200),
]
OF_CHUNKS12 = [*SIZES[:-1], (10**7, 200)]  # the longest has half a million chunks: test_indices.py has it once


def require_native() -> None:
    if kernels() is None:
        pytest.skip("the package was installed without its C code")


def rounded(wire: Wire, sparse: SparseGradient) -> SparseGradient:
    return SparseGradient(sparse.indices, wire.round(sparse.values), sparse.numel)


def require_same(got: SparseGradient, want: SparseGradient) -> None:
    assert got.numel == want.numel
    assert torch.equal(got.indices, want.indices)
    assert got.values.dtype == want.values.dtype
    bits = torch.int64 if want.values.dtype == torch.float64 else torch.int32
    assert torch.equal(got.values.view(bits), want.values.view(bits))


@each_backend
@each("wire", WIRES, ids=str)
def test_every_wire_brings_every_size_back(wire: Wire, backend: str, make: Make, drawn: Drawn) -> None:
    for numel, count in OF_CHUNKS12 if wire.index == "chunks12" else SIZES:
        for dtype in (torch.float32, torch.float64):
            sparse = rounded(wire, make(numel, count, dtype))
            shared = drawn(sparse)
            payload = wire.encode(sparse, shared=shared)
            assert payload.numel() <= wire.max_bytes(count, numel, dtype)
            require_same(wire.decode(payload, numel, dtype=dtype, shared=shared), sparse)
            if dtype == torch.float32:
                require_same(wire.decode(payload, shared=shared), sparse)


@each_backend
@each("wire", [wire for wire in WIRES if wire.index != "seed"], ids=str)
def test_a_payload_with_room_has_a_known_size_and_the_same_entries(wire: Wire, backend: str, make: Make) -> None:
    for numel, count, capacity in ((700, 65, 66), (700, 0, 3), (700, 64, 700), (700, 9, 7000), (200_000, 1, 1)):
        sparse = rounded(wire, make(numel, count))
        payload = wire.encode(sparse, capacity=capacity)
        assert payload.numel() == wire.max_bytes(capacity, numel)
        require_same(wire.decode(payload, numel), sparse)
        behind = torch.cat([payload, torch.full((9,), 255, dtype=torch.uint8)])
        require_same(wire.decode(behind, numel), sparse)


@each("wire", WIRES, ids=str)
def test_reference_and_native_write_the_same_bytes(
    wire: Wire, make: Make, drawn: Drawn, reference_only: Callable[[], AbstractContextManager[None]]
) -> None:
    require_native()
    for numel, count in [*(OF_CHUNKS12 if wire.index == "chunks12" else SIZES), (100_000, 3_000)]:
        sparse = make(numel, count)
        broken = sparse.values.clone()
        broken[-1:] = torch.nan
        broken[:1] = -torch.inf
        for values in (sparse.values, broken, sparse.values * 1e-40, torch.full_like(broken, 3.4e38)):
            ours = rounded(wire, SparseGradient(sparse.indices, values, numel))
            shared = drawn(ours)
            payload = wire.encode(ours, shared=shared)
            with reference_only():
                theirs = rounded(wire, SparseGradient(sparse.indices, values, numel))
                assert torch.equal(theirs.values.view(torch.int32), ours.values.view(torch.int32))
                assert torch.equal(wire.encode(theirs, shared=shared), payload)


@each("name", [name for name, code in INDEX_CODES.items() if isinstance(code, DeviceCode)])
@each("values", FIXED)
def test_the_form_for_accelerators_reads_the_same_and_fills_up_with_nothing(
    name: str, values: str, make: Make, drawn: Drawn
) -> None:
    for numel, count, capacity in ((700, 65, 70), (70_000, 900, 900), (600, 590, 600), (5, 0, 3)):
        if name == "seed" and count != capacity:
            continue
        wire = Wire(name, values)
        sparse = rounded(wire, make(numel, count, torch.float64 if values == "fp64" else torch.float32))
        shared = drawn(sparse)
        payload = wire.encode(sparse, capacity=capacity, shared=shared)
        codes = wire._codes(sparse.values.dtype).with_draw(shared)
        got = read_unchecked(payload, codes, capacity, numel)
        require_same(SparseGradient(got.indices[:count], got.values[:count], numel), sparse)
        assert got.indices[count:].tolist() == [*range(numel - capacity + count, numel)]
        assert got.values[count:].tolist() == [0.0] * (capacity - count)


@each("values", FIXED)
@each("name", ["chunks", "chunks12", "raw"])
def test_accelerators_are_not_waited_for(name: str, values: str) -> None:
    # tensors on "meta" have no data: whatever needs a number of theirs on the host raises
    wire, dtype = Wire(name, values), torch.float64 if values == "fp64" else torch.float32
    indices = torch.empty(70, dtype=torch.int32, device="meta")
    sparse = rounded(wire, SparseGradient(indices, torch.empty(70, dtype=dtype, device="meta"), 200_000))
    payload = wire.encode(sparse, capacity=80)
    assert payload.shape == (wire.max_bytes(80, 200_000, dtype),)
    assert payload.device.type == "meta"
    got = wire.decode(payload, 200_000, capacity=80, dtype=dtype)
    assert got.values.shape == (80,)
    assert got.values.device.type == "meta"


def test_payload_of_an_accelerator_needs_its_length() -> None:
    with pytest.raises(ValueError, match="numel must be given for a payload on an accelerator, got None"):
        Wire("chunks", "bf16").decode(torch.empty(100, dtype=torch.uint8, device="meta"), capacity=3)


# ---------------------------------------------------------------------- settings


def test_text_and_settings() -> None:
    for wire in [*WIRES, Wire("rice", "8bit", "stochastic")]:
        assert Wire.parse(str(wire)) == wire
    assert Wire() == Wire.parse(" rice+bf16-rice ")
    for text, varies, on_device in (
        ("rice+bf16", True, False),
        ("chunks+bf16", False, True),
        ("chunks+bf16-rice", True, False),
        ("eliasfano+8bit", False, False),
    ):
        wire = Wire.parse(text)
        assert (wire.varies, wire.on_device) == (varies, on_device)


@each(
    ("text", "message"),
    [
        ("rice", "wire must be index+values or index+values+rounding, got 'rice'"),
        ("golomb+bf16", "index must be one of raw, rice, eliasfano, chunks, chunks12, seed, got 'golomb'"),
        (
            "rice+int8",
            "values must be one of fp32, fp64, bf16, fp16, bf16-rice, 8bit, 4bit, 2bit, sign, got 'int8'",
        ),
        ("rice+bf16+up", "rounding must be nearest or stochastic, got 'up'"),
        ("rice+sign+stochastic", "rounding must be nearest for sign values, got 'stochastic'"),
        ("rice+fp32+stochastic", "rounding must be nearest for fp32 values, got 'stochastic'"),
    ],
)
def test_refuses_unknown_settings(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Wire.parse(text)


@each("wire", WIRES, ids=str)
def test_entries_within_is_the_most_that_fit(wire: Wire) -> None:
    for numel in (1, 100, 100_000, MAX_NUMEL):
        least = wire.max_bytes(1, numel)
        for room in (least, least + 1, least + 1000, 2 * least + 50_000):
            k = wire.entries_within(room, numel)
            assert wire.max_bytes(k, numel) <= room
            assert k == numel or wire.max_bytes(k + 1, numel) > room
        with pytest.raises(ValueError, match=f"max_bytes must be at least {least}, a header and one entry, got"):
            wire.entries_within(least - 1, numel)


@each("numel", [10**6, 25 * 10**6])
def test_entries_of_2_bits_take_14_and_a_half_on_accelerators_wherever_they_lie(numel: int) -> None:
    wire, k = Wire("chunks12", "2bit"), numel // 64
    row = -(-wire.max_bytes(k, numel) // 128) * 128  # filled up as all-gather sends it
    assert 8 * row / k <= 14.5
    for indices in (torch.arange(k) * 64, torch.arange(k), torch.arange(numel - k, numel)):
        sparse = rounded(wire, SparseGradient(indices.int(), torch.linspace(-3, 2, k), numel))
        payload = wire.encode(sparse, capacity=k)
        assert payload.numel() == wire.max_bytes(k, numel)
        require_same(wire.decode(payload, numel), sparse)


@each("wire", WIRES, ids=str)
def test_max_bytes_grows_with_the_entries_and_with_the_vector(wire: Wire) -> None:
    lengths = [*range(1, 70), 127, 128, 129, 255, 256, 4095, 4096, 65536, 65537, 2**20, MAX_NUMEL]
    for dtype in (torch.float32, torch.float64):
        for k in (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 63, 64, 65, 1000):
            sizes = [wire.max_bytes(k, numel, dtype) for numel in lengths]
            assert sizes == sorted(sizes), k
        for numel in (1, 2, 15, 16, 100, 2**20):
            sizes = [wire.max_bytes(k, numel, dtype) for k in range(min(numel, 300) + 3)]
            assert sizes == sorted(sizes), numel


@each("wire", WIRES, ids=str)
def test_max_bytes_holds_for_fewer_entries_too(wire: Wire) -> None:
    for numel in (1, 7, 300, 4097, 100_000):
        sizes = [wire.max_bytes(k, numel) for k in range(min(numel, 600) + 1)]
        index, values = INDEX_CODES[wire.index], VALUE_CODES[wire.values]
        least = [HEADER_BYTES + index.least_bytes(k, numel) + values.bytes_for(k) for k in range(len(sizes))]
        assert all(max(least[: k + 1]) <= sizes[k] for k in range(len(sizes)))
        assert wire.max_bytes(numel + 5, numel) == wire.max_bytes(numel, numel)


# ---------------------------------------------------------------------- refusals of the encoder


def test_refuses_more_entries_than_room(make: Make) -> None:
    with pytest.raises(ValueError, match="capacity must be at least the 5 entries kept, got 4"):
        Wire("rice", "fp32").encode(make(100, 5), capacity=4)


@each_backend
@each("index", [name for name in INDEX_CODES if name != "seed"])
@each("places", [[3, 3], [4, 2], [-1, 2], [2, 10], [0, 5, 5, 9]])
def test_refuses_indices_out_of_order(index: str, places: list[int], backend: str) -> None:
    sparse = SparseGradient(torch.tensor(places, dtype=torch.int32), torch.ones(len(places)), 10)
    with pytest.raises(ValueError, match=re.escape("indices must ascend without repeats in [0, numel), got others")):
        Wire(index, "fp32").encode(sparse)


@each_backend
@each("values", [name for name, code in VALUE_CODES.items() if not code.exact])
@each("dtype", [torch.float32, torch.float64])
def test_refuses_values_that_are_not_rounded(values: str, dtype: torch.dtype, backend: str) -> None:
    exact = torch.tensor([0.1, 0.2, -0.37], dtype=dtype)
    sparse = SparseGradient(torch.tensor([1, 2, 3], dtype=torch.int32), exact, 10)
    with pytest.raises(ValueError, match="values must be rounded to the code before they are encoded, got others"):
        Wire("rice", values).encode(sparse)


def test_refuses_other_dtypes(make: Make) -> None:
    sparse = make(10, 2)
    for dtype in (torch.bfloat16, torch.int32):
        with pytest.raises(ValueError, match=f"values must be float32 or float64, got {dtype}. Convert them."):
            Wire().encode(SparseGradient(sparse.indices, sparse.values.to(dtype), 10))


def test_exact_values_keep_their_width(make: Make) -> None:
    wire, sparse = Wire("rice", "fp32"), make(1000, 10, torch.float64)
    payload = wire.encode(sparse)
    require_same(wire.decode(payload), sparse)
    with pytest.raises(ValueError, match=re.escape("payload must be coded as rice+fp32, got rice+fp64")):
        wire.decode(payload, dtype=torch.float32)


def test_values_can_be_widened_but_not_narrowed(make: Make) -> None:
    wide = Wire("rice", "fp64")
    payload = wide.encode(make(1000, 10, torch.float64))
    with pytest.raises(ValueError, match=r"dtype must hold the payload's torch\.float64, got torch\.float32"):
        wide.decode(payload, dtype=torch.float32)
    narrow = rounded(Wire(), make(1000, 10))
    assert torch.equal(Wire().decode(Wire().encode(narrow), dtype=torch.float64).values, narrow.values.double())


# ---------------------------------------------------------------------- shared draws


def test_shared_draw_is_needed_and_compared(make: Make, drawn: Drawn) -> None:
    wire, sparse = Wire("seed", "fp32"), make(1000, 10)
    shared = drawn(sparse)
    with pytest.raises(ValueError, match="shared must be a SharedDraw for the index code 'seed', got None"):
        wire.encode(sparse)
    payload = wire.encode(sparse, shared=shared)
    assert payload.numel() == HEADER_BYTES + 4 + 40
    with pytest.raises(ValueError, match="shared must be a SharedDraw"):
        wire.decode(payload)
    later = SharedDraw(shared.seed, shared.step + 1, shared.part, shared.draw)
    with pytest.raises(ValueError, match="payload must be of seed 5, step 7, part 7, got another fingerprint"):
        wire.decode(payload, shared=later)
    with pytest.raises(ValueError, match="indices must be those that SharedDraw draws, got others"):
        wire.encode(make(1000, 10), shared=shared)
    with pytest.raises(ValueError, match="capacity must be the 10 entries drawn when indices are not sent, got 12"):
        wire.encode(sparse, shared=shared, capacity=12)
    short = SharedDraw(shared.seed, shared.step, shared.part, lambda numel, count: torch.arange(3))
    with pytest.raises(ValueError, match=r"draw must return 10 int32 indices, got torch\.int64 of shape"):
        wire.decode(payload, shared=short)


# ---------------------------------------------------------------------- real selections


@pytest.fixture(scope="module")
def selections() -> dict[str, SparseGradient]:
    """Return the selections of scripts/make_selections.py: ``model/density`` -> what was sent."""
    arrays = np.load(Path(__file__).parent.parent / "fixtures/selections.npz")
    found = {}
    for name in {key.rsplit("/", 1)[0] for key in arrays}:
        indices = torch.from_numpy(np.cumsum(arrays[f"{name}/steps"].astype(np.int64)) - 1).int()
        values = torch.ones(len(indices))
        if f"{name}/bf16" in arrays:
            values = torch.from_numpy(arrays[f"{name}/bf16"]).view(torch.bfloat16).float()
        found[name] = SparseGradient(indices, values, arrays[f"{name}/numel"].item()).check()
    return found


# bits an index, as benchmarks/codec.py counts them; random positions need 8.1, 11.4 and 14.7
RICE_BITS = {
    "words/0.01": 5.2,
    "words/0.001": 7.1,
    "words/0.0001": 9.7,
    "wide/0.01": 6.7,
    "wide/0.001": 8.6,
    "wide/0.0001": 13.6,
    "convnet/0.01": 6.8,
    "convnet/0.001": 9.1,
    "convnet/0.0001": 9.4,
    "fnn3/0.01": 6.5,
    "fnn3/0.001": 8.8,
    "lenet5/0.01": 6.2,
    "lenet5/0.001": 10.6,
}


@each("name", RICE_BITS)
def test_real_selections_take_no_more_than_measured(name: str, selections: dict[str, SparseGradient]) -> None:
    sparse = selections[name]
    sizes = {
        index: 8 * Wire(index, "fp32").encode(sparse).numel() / sparse.kept - 32
        for index in INDEX_CODES
        if index != "seed"
    }
    header = 8 * HEADER_BYTES / sparse.kept
    assert sizes["rice"] - header <= RICE_BITS[name]
    assert sizes["rice"] < sizes["eliasfano"] < sizes["chunks"] < sizes["raw"]
    payload = Wire("rice", "fp32").encode(sparse)
    with use_backend("reference"):
        assert torch.equal(Wire("rice", "fp32").encode(sparse), payload)
        require_same(Wire("rice", "fp32").decode(payload), sparse)


# relative error of the norm in percent
ROUNDING_ERRORS = {"bf16": 0.0, "fp16": 0.0, "8bit": 0.7, "4bit": 8.5, "2bit": 13.2, "sign": 21.5}


@each("values", ROUNDING_ERRORS)
def test_real_values_are_rounded_as_little_as_measured(values: str, selections: dict[str, SparseGradient]) -> None:
    for name in ("words/0.001", "wide/0.001", "convnet/0.001"):
        exact = selections[name].values  # of bfloat16, so that the 16-bit codes lose nothing
        error = (Wire("rice", values).round(exact) - exact).double().norm() / exact.double().norm()
        assert 100 * float(error) <= ROUNDING_ERRORS[values]
