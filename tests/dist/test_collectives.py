"""Every collective x every mix of counts x every world size: the mean is right, and the same bits everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torch import Tensor

from gaussiank.collectives import COLLECTIVES, Collective, parse_collective, require_agreement
from gaussiank.sparse import SparseGradient

NUMEL = 97
LOSSLESS = [
    "dense",
    "allgather",
    "allgather:ask=true",
    "split:trim=false",
    "hierarchical:ranks_per_node=1:trim=false",
    "hierarchical:ranks_per_node=2:trim=false",
    "auto:mbit=100:candidates=dense+allgather",
]
REJECTING = [
    "split",
    "split:slack=0.5",
    "split:slack=1.5:rebalance=false",
    "leader",
    "tree",
    "hierarchical:ranks_per_node=2",
    "hierarchical:ranks_per_node=2:inside=dense",
    "auto",
]
SPECS = [*LOSSLESS, *REJECTING]
assert {spec.split(":")[0] for spec in SPECS} == set(COLLECTIVES)


def joined(spec: str, world_size: int) -> Collective:
    if world_size % 2:  # equal nodes
        spec = spec.replace("ranks_per_node=2", f"ranks_per_node={world_size}")
    if spec not in _JOINED:
        _JOINED[spec] = parse_collective(spec).join()
    return _JOINED[spec]


_JOINED: dict[str, Collective] = {}  # kept by each worker: joining makes groups


def _counts(case: str, rank: int) -> int:
    return {"unequal": 5 * rank + 3, "one empty": 0 if rank == 0 else 7, "all empty": 0, "full": NUMEL, "equal": 6}[
        case
    ]


def _part(case: str, rank: int, dtype: torch.dtype = torch.float32) -> SparseGradient:
    generator = torch.Generator().manual_seed(100 + rank)
    indices = torch.randperm(NUMEL, generator=generator)[: _counts(case, rank)].sort().values.int()
    return SparseGradient(indices, torch.randn(len(indices), generator=generator, dtype=dtype), NUMEL)


def exchange(rank: int, world_size: int, spec: str, case: str, asks: bool, dtype: torch.dtype, steps: int = 1) -> Any:
    """Exchange the same entries step after step; return what came of the last, and what entered it from this worker.

    The residual is a vector of its own: what a collective draws from it enters too.
    """
    collective = joined(spec, world_size)
    part = _part(case, rank, dtype)
    capacity = None if asks else max(_counts(case, other) for other in range(world_size))
    hint = None
    for step in range(steps):
        residual = _residual(rank, part)
        before = residual.clone()

        def draw(indices: Tensor, residual: Tensor = residual) -> Tensor:
            drawn = residual[indices]
            residual[indices] = 0
            return drawn

        message = collective.start(part, capacity=capacity, step=step, part=1, hint=hint, draw=draw)
        out = torch.full((NUMEL,), 7.0, dtype=dtype)
        outcome = message.finish(out)
        hint = outcome.hint
    entered = before - residual + part.dense()
    if outcome.rejected is not None:
        outcome.rejected.check()
        entered -= outcome.rejected.dense()
        assert torch.equal(outcome.rejected.values, part.dense()[outcome.rejected.indices])
    return out, bool(outcome.finite), entered, outcome.rejected is None, message.sent_bytes


def _residual(rank: int, part: SparseGradient) -> Tensor:
    left = torch.randn(NUMEL, generator=torch.Generator().manual_seed(200 + rank)).to(part.values.dtype)
    left[part.indices] = 0
    return left


CASES = ["unequal", "one empty", "all empty", "full", "equal"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("asks", [False, True], ids=["capacity known", "capacity asked"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("spec", SPECS)
def test_mean_of_what_entered_is_right_and_bit_identical(
    workers: Any, spec: str, case: str, asks: bool, dtype: torch.dtype
) -> None:
    check(workers, spec, workers.run(exchange, spec, case, asks, dtype), case, dtype)


@pytest.mark.parametrize("spec", SPECS)
def test_hints_of_earlier_steps_change_no_law(workers: Any, spec: str) -> None:
    for case in ("unequal", "one empty"):
        results = workers.run(exchange, spec, case, True, torch.float32, 4)
        check(workers, spec, results, case, torch.float32)


def check(workers: Any, spec: str, results: list[Any], case: str, dtype: torch.dtype) -> None:
    expected = torch.stack([entered for _, _, entered, _, _ in results]).mean(0)
    for out, finite, _, all_entered, _ in results:
        assert torch.equal(out, results[0][0])
        torch.testing.assert_close(out, expected)
        assert finite
        assert all_entered or spec in REJECTING
    if spec not in REJECTING:
        given = torch.stack([_part(case, rank, dtype).dense() for rank in range(workers.world_size)]).mean(0)
        torch.testing.assert_close(expected, given)


def test_all_gather_bytes_are_payload_times_peers(workers: Any) -> None:
    sent = [answer[-1] for answer in workers.run(exchange, "allgather", "equal", False, torch.float32)]
    assert sent == [(workers.world_size - 1) * (16 + 6 * 8)] * workers.world_size


def given(rank: int, world_size: int, spec: str, parts: list[dict[int, float]], numel: int) -> list[float]:
    own = parts[rank]
    sparse = SparseGradient(torch.tensor(list(own), dtype=torch.int32), torch.tensor(list(own.values())), numel)
    message = joined(spec, world_size).start(sparse, capacity=None)
    out = torch.empty(numel)
    message.finish(out)
    return out.tolist()


@pytest.mark.parametrize("spec", LOSSLESS)
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
def test_vectors_of_the_paper(two_workers: Any, spec: str, parts: Any, numel: int, mean: list[float]) -> None:
    assert two_workers.run(given, spec, parts, numel) == [mean, mean]


def poisoned(rank: int, world_size: int, spec: str) -> tuple[bool, bool]:
    value = float("nan") if rank == world_size - 1 else 1.0
    sparse = SparseGradient(torch.tensor([2], dtype=torch.int32), torch.tensor([value]), 5)
    message = joined(spec, world_size).start(sparse, capacity=1)
    out = torch.empty(5)
    return bool(message.finish(out).finite), bool(out[2].isnan())


@pytest.mark.parametrize("spec", SPECS)
def test_nan_of_one_worker_reaches_all(workers: Any, spec: str) -> None:
    assert workers.run(poisoned, spec) == [(False, True)] * workers.world_size


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
