"""Every index code x every pattern of indices: both backends, the bounds, and the limits of coding."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.each import each

from gaussiank.codec import native
from gaussiank.codec.indices import INDEX_CODES, IndexCode
from gaussiank.ops import use_backend
from gaussiank.ops.dispatch import kernels
from gaussiank.sparse import MAX_NUMEL

CODES = {name: code for name, code in INDEX_CODES.items() if name != "seed"}
CHUNK = 65536


def ramp(*parts: range) -> torch.Tensor:
    return torch.cat([torch.arange(part.start, part.stop, part.step, dtype=torch.int32) for part in parts])


SMALL = 4096
EDGES = torch.tensor([0, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK], dtype=torch.int32)
PATTERNS = {
    "nothing": (torch.empty(0, dtype=torch.int32), 5),
    "nothing of the longest": (torch.empty(0, dtype=torch.int32), MAX_NUMEL),
    "all of one": (ramp(range(1)), 1),
    "all": (ramp(range(300)), 300),
    "a full block": (ramp(range(0, 64 * 5, 5)), 1000),
    "a full block and one": (ramp(range(0, 65 * 5, 5)), 1000),
    "last of the longest": (torch.tensor([MAX_NUMEL - 1], dtype=torch.int32), MAX_NUMEL),
    "both ends of the longest": (torch.tensor([0, MAX_NUMEL - 1], dtype=torch.int32), MAX_NUMEL),
    "the first block far behind": (ramp(range(MAX_NUMEL - 70, MAX_NUMEL)), MAX_NUMEL),
    "far ones of all lengths": ((2 ** torch.arange(31)).int() - 1, MAX_NUMEL),
    "runs far apart": (torch.cat([ramp(range(at, at + 20)) for at in (0, 5000, 10**6, 10**9)]), MAX_NUMEL),
    "a long gap in a block": (ramp(range(40), range(2**30, 2**30 + 40)), MAX_NUMEL),
    "edges of chunks": (EDGES, 2 * CHUNK + 1),
    "exactly one chunk": (ramp(range(7, CHUNK, 1000)), CHUNK),
    "a full chunk": (ramp(range(CHUNK)), CHUNK),
    "a full chunk between empty ones": (ramp(range(CHUNK, 2 * CHUNK)), 3 * CHUNK),
    "all but one of a chunk": (ramp(range(5, 10), range(CHUNK + 1, 2 * CHUNK + 5)), 3 * CHUNK),
    "two full chunks and one": (ramp(range(2 * CHUNK + 1)), 2 * CHUNK + 1),
    "edges of small chunks": (EDGES // 16, 2 * SMALL + 1),
    "all of one small chunk of many": (ramp(range(9 * SMALL, 10 * SMALL)), 100 * SMALL - 7),
    "all but one of a small chunk, and of the next": (ramp(range(1, SMALL), range(SMALL, 2 * SMALL - 1)), 3 * SMALL),
    "the last, shorter one of small chunks": (ramp(range(SMALL, SMALL + 5)), SMALL + 5),
}


def sections(code: IndexCode, indices: torch.Tensor, numel: int) -> torch.Tensor:
    section = code.encode(indices, numel, len(indices))
    size = section.numel()
    assert code.least_bytes(len(indices), numel) <= size
    assert size <= (code.max_bytes(len(indices), numel) if len(indices) else size)
    got = code.decode(section, len(indices), numel)
    assert got.dtype == torch.int32
    assert torch.equal(got, indices)
    return section


@each("pattern", PATTERNS)
@each("name", CODES)
def test_both_backends_write_the_same_bytes_and_read_them_back(
    name: str, pattern: str, reference_only: Callable[[], AbstractContextManager[None]]
) -> None:
    indices, numel = PATTERNS[pattern]
    section = sections(CODES[name], indices, numel)
    if CODES[name].compiled:
        with reference_only():
            assert torch.equal(sections(CODES[name], indices, numel), section)


@each("name", CODES)
@given(st.data())
def test_any_indices_come_back(name: str, data: st.DataObject) -> None:
    gaps = st.one_of(st.integers(0, 3), st.integers(0, 500), st.integers(0, 10**6))
    chosen = data.draw(st.lists(gaps, max_size=200))
    indices = (torch.tensor(chosen, dtype=torch.int64) + 1).cumsum(0).int() - 1
    numel = (int(indices[-1]) if chosen else 0) + data.draw(st.integers(1, 10**6))
    section = sections(CODES[name], indices, numel)
    with use_backend("reference"):
        assert torch.equal(sections(CODES[name], indices, numel), section)


@each("density", [0.01, 0.001, 0.0001])
def test_random_positions_cost_what_coding_theory_says(density: float) -> None:
    numel = 10**7
    random = np.random.default_rng(3)
    indices = torch.from_numpy(np.sort(random.choice(numel, int(density * numel), replace=False)).astype(np.int32))
    limit = (-density * math.log2(density) - (1 - density) * math.log2(1 - density)) / density
    bits = {name: 8 * code.encode(indices, numel, len(indices)).numel() / len(indices) for name, code in CODES.items()}
    assert limit <= bits["rice"] <= 1.01 * limit + 0.1
    assert limit <= bits["eliasfano"] <= math.log2(1 / density) + 2 + 0.1
    assert bits["chunks"] == pytest.approx(16 + 17 / (density * CHUNK), rel=0.01)
    assert bits["chunks12"] == pytest.approx(12 + 13 / (density * SMALL), rel=0.01)
    assert bits["raw"] == 32


def test_rice_gets_smaller_where_indices_cluster() -> None:
    numel = 10**7
    near = torch.arange(10_000)
    clustered = (3 * near + near // 640 * 500_000).int()  # each third of 640, then half a million without one
    bits = 8 * CODES["rice"].encode(clustered, numel, len(clustered)).numel() / len(clustered)
    assert bits < 4.5 < 8 * CODES["eliasfano"].encode(clustered, numel, len(clustered)).numel() / len(clustered)


@each("name", ["rice", "eliasfano"])
def test_no_distribution_of_gaps_breaks_the_bound(name: str) -> None:
    random = np.random.default_rng(9)
    code = CODES[name]
    for numel in (64, 200, 5000, 10**6):
        for count in {1, 2, 63, 64, 65, numel // 3, numel - 1, numel}:
            if not 1 <= count <= numel or count > 20_000:
                continue
            for power in (0.3, 1.0, 4.0):  # from almost even to a few huge gaps
                weights = random.random(numel if numel <= 5000 else 4 * count) ** power
                places = np.sort(random.choice(len(weights), count, replace=False, p=weights / weights.sum()))
                sections(code, torch.from_numpy((places * (numel // len(weights))).astype(np.int32)), numel)


def test_encoder_does_not_write_past_its_room() -> None:
    if kernels() is None:
        pytest.skip("the package was installed without its C code")
    indices = torch.arange(0, 100_000, 7, dtype=torch.int32)
    for name in ("rice", "eliasfano", "chunks"):
        whole = CODES[name].encode(indices, 100_000, len(indices)).numel()
        for room in (0, 1, whole // 3, whole - 1):
            with pytest.raises(ValueError, match="room must hold what is encoded, got less"):
                native.encode_indices(name, indices, 100_000, room)
        assert native.encode_indices(name, indices, 100_000, whole).numel() == whole
