"""Every collective x every mix of counts x every world size: the mean is right, and the same bits everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gaussiank.collectives import COLLECTIVES, require_agreement
from gaussiank.sparse import SparseGradient

NUMEL = 97


def _counts(case: str, rank: int) -> int:
    return {"unequal": 5 * rank + 3, "one empty": 0 if rank == 0 else 7, "all empty": 0, "full": NUMEL, "equal": 6}[
        case
    ]


def _part(case: str, rank: int, dtype: torch.dtype = torch.float32) -> SparseGradient:
    generator = torch.Generator().manual_seed(100 + rank)
    indices = torch.randperm(NUMEL, generator=generator)[: _counts(case, rank)].sort().values.int()
    return SparseGradient(indices, torch.randn(len(indices), generator=generator, dtype=dtype), NUMEL)


def exchange(rank: int, world_size: int, name: str, case: str, asks: bool, dtype: torch.dtype) -> Any:
    part = _part(case, rank, dtype)
    capacity = None if asks else max(_counts(case, other) for other in range(world_size))
    message = COLLECTIVES[name]().start(part, capacity=capacity)
    message.future.wait()
    out = torch.full((NUMEL,), 7.0, dtype=dtype)
    outcome = message.finish(out)
    return out, bool(outcome.finite), outcome.rejected is None, message.sent_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("asks", [False, True], ids=["capacity known", "capacity asked"])
@pytest.mark.parametrize("case", ["unequal", "one empty", "all empty", "full", "equal"])
@pytest.mark.parametrize("name", COLLECTIVES)
def test_mean_is_right_and_bit_identical(workers: Any, name: str, case: str, asks: bool, dtype: torch.dtype) -> None:
    results = workers.run(exchange, name, case, asks, dtype)
    expected = torch.stack([_part(case, rank, dtype).dense() for rank in range(workers.world_size)]).mean(0)
    for out, finite, entered, _ in results:
        assert torch.equal(out, results[0][0])
        torch.testing.assert_close(out, expected)
        assert finite
        assert entered


def test_all_gather_bytes_are_payload_times_peers(workers: Any) -> None:
    sent = [answer[3] for answer in workers.run(exchange, "allgather", "equal", False, torch.float32)]
    assert sent == [(workers.world_size - 1) * (16 + 6 * 8)] * workers.world_size


def given(rank: int, world_size: int, name: str, parts: list[dict[int, float]], numel: int) -> list[float]:
    own = parts[rank]
    sparse = SparseGradient(torch.tensor(list(own), dtype=torch.int32), torch.tensor(list(own.values())), numel)
    message = COLLECTIVES[name]().start(sparse, capacity=None)
    message.future.wait()
    out = torch.empty(numel)
    message.finish(out)
    return out.tolist()


@pytest.mark.parametrize("name", COLLECTIVES)
@pytest.mark.parametrize(
    ("parts", "numel", "mean"),
    [
        ([{0: 1.0, 1: 2.0, 2: 3.0}, {0: 10.0, 2: 20.0}], 4, [5.5, 1.0, 11.5, 0.0]),
        ([{0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}, {3: 10.0}], 6, [0.5, 1.0, 1.5, 7.0, 2.5, 0.0]),
        ([{0: 5.0, 2: 7.0}, {0: -1.0, 1: -2.0, 2: -3.0, 3: -4.0}], 4, [2.0, -1.0, 2.0, -2.0]),
        ([{}, {1: 4.0}], 3, [0.0, 2.0, 0.0]),
        ([{}, {}], 3, [0.0, 0.0, 0.0]),
    ],
)
def test_vectors_of_the_paper(two_workers: Any, name: str, parts: Any, numel: int, mean: list[float]) -> None:
    assert two_workers.run(given, name, parts, numel) == [mean, mean]


def poisoned(rank: int, world_size: int, name: str) -> tuple[bool, bool]:
    value = float("nan") if rank == world_size - 1 else 1.0
    sparse = SparseGradient(torch.tensor([2], dtype=torch.int32), torch.tensor([value]), 5)
    message = COLLECTIVES[name]().start(sparse, capacity=1)
    message.future.wait()
    out = torch.empty(5)
    return bool(message.finish(out).finite), bool(out[2].isnan())


@pytest.mark.parametrize("name", COLLECTIVES)
def test_nan_of_one_worker_reaches_all(workers: Any, name: str) -> None:
    assert workers.run(poisoned, name) == [(False, True)] * workers.world_size


def disagree(rank: int, world_size: int) -> str:
    require_agreement({"density": 0.001, "scope": "bucket"})
    try:
        require_agreement({"density": 0.001 if rank != 1 else 0.01, "scope": "bucket"})
    except ValueError as error:
        return str(error)
    return "agreed"


def test_disagreement_names_field_and_rank(workers: Any) -> None:
    expected = (
        "agreed"
        if workers.world_size == 1
        else "density must be the same on every worker, got '0.001' on rank 0 and '0.01' on rank 1. "
        "Start all workers with the same settings."
    )
    assert workers.run(disagree) == [expected] * workers.world_size
