from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from tests.each import each

from gaussiank.compressors import ChunkTopK, SelectContext
from gaussiank.ops import select_topk

Draw = Callable[..., torch.Tensor]
LAWS = ["normal", "cauchy", "sparse", "integers", "constant"]


def shares(numel: int, chunk: int, k: int, indices: torch.Tensor) -> list[int]:
    counts = torch.bincount(indices.long() // chunk, minlength=-(-numel // chunk))
    return counts.tolist()


@each("chunk", [1, 7, 64, 200, 599, 600, 4096])
@each("law", LAWS)
def test_each_chunk_sends_its_own_topk(draw: Draw, law: str, chunk: int) -> None:
    vector = draw(law, 600)
    for k in (1, 3, 46, 599, 600):
        for step in (0, 1, 17):
            indices = ChunkTopK(chunk).select(vector, k, SelectContext(step=step)).indices
            counts = shares(600, chunk, k, indices)
            assert len(indices) == sum(counts) == k
            fair = [k * len(part) / 600 for part in vector.split(chunk)]
            assert all(abs(count - share) < 1 for count, share in zip(counts, fair, strict=True))
            start = 0
            for place, count in enumerate(counts):
                part = vector[place * chunk : (place + 1) * chunk]
                want = select_topk(part, count) + place * chunk if count else torch.empty(0, dtype=torch.int32)
                assert torch.equal(indices[start : start + count], want)
                start += count


def test_a_share_below_one_entry_comes_round(draw: Draw) -> None:
    vector, visits = draw("normal", 1000), torch.zeros(100)
    for step in range(100):
        indices = ChunkTopK(10).select(vector, 3, SelectContext(step=step)).indices
        visits[indices.long() // 10] += 1
    assert visits.tolist() == [3.0] * 100


def test_one_chunk_is_topk(draw: Draw) -> None:
    vector = draw("laplace", 3000)
    assert torch.equal(ChunkTopK().select(vector, 50).indices, select_topk(vector, 50))


def test_large_chunks_pay_for_small_ones() -> None:
    vector = torch.cat([torch.full((10,), 100.0), torch.full((10,), 0.1)])
    assert ChunkTopK(10).select(vector, 4).indices.tolist() == [0, 1, 10, 11]


@each("chunk", [0, -4])
def test_refuses_an_empty_chunk(chunk: int) -> None:
    message = f"chunk must be at least 1 entry, got {chunk}. SparseLoCo uses 4096."
    with pytest.raises(ValueError, match=re.escape(message)):
        ChunkTopK(chunk)
