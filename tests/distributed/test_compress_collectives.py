"""Every collective in real DDP: nothing is lost, whatever it sends back, and whatever DDP is told to do."""

from __future__ import annotations

import itertools
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.distributed import test_hook as hook_tests
from tests.distributed.test_hook import Given, Totals, assert_nothing_lost, counted, feed, resumed, run
from tests.distributed.test_hook_overflow import overflowing
from tests.each import each
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank.autotune import Link, parse_policy, policy, tuner
from gaussiank.codec import Wire

SMALL_BUCKETS = {"bucket_cap_mb": 0.0005}
SPECS = [
    "dense",
    "allgather",
    "allgather:ask=true",
    "split",
    "split:slack=0.3",
    "split:trim=false",
    "leader",
    "tree",
    "hierarchical:ranks_per_node=1",
    "auto:mbit=10:latency_us=100:candidates=dense+allgather+split+tree",
]


PHASED = ["split", "leader", "tree"]
EVERY_DENSE = "auto:mbit=100000:latency_us=1:select_ns=100"


@each("scope", ["bucket", "model"])
@each("spec", [*SPECS, EVERY_DENSE])
def test_nothing_is_lost(workers: Any, spec: str, scope: str) -> None:
    how = {"density": 0.05, "scope": scope, "collective": spec}
    assert_nothing_lost(workers.run(run, 6, SMALL_BUCKETS, how, torch.float32))


@each("compressor", ["gaussiank:mode=published", "randomk", "gaussiank"])
@each("spec", SPECS)
def test_nothing_is_lost_by_other_compressors(three_workers: Any, spec: str, compressor: str) -> None:
    how = {"density": 0.05, "collective": spec, "compressor": compressor}
    assert_nothing_lost(three_workers.run(run, 4, {}, how, torch.float32))


@each("dtype", [torch.bfloat16, torch.float64])
@each("spec", [*PHASED, EVERY_DENSE])
def test_nothing_is_lost_in_other_dtypes(two_workers: Any, spec: str, dtype: torch.dtype) -> None:
    how = {"density": 0.1, "collective": spec, "scope": "model"}
    # a dense all-reduce itself sums in bfloat16, as DDP's does; only what was rounded before it can be kept
    loose = {"rtol": 2e-2, "atol": 8e-2} if spec == EVERY_DENSE and dtype == torch.bfloat16 else {}
    assert_nothing_lost(two_workers.run(run, 6, SMALL_BUCKETS, how, dtype), **loose)


@each("spec", PHASED)
def test_dense_steps_of_a_schedule_flush_the_residual(two_workers: Any, spec: str) -> None:
    how = {"density": gaussiank.Warmup((0.05, 1.0), stage_steps=3), "collective": spec}
    results = two_workers.run(run, 4, SMALL_BUCKETS, how, torch.float32)
    assert_nothing_lost(results)
    assert not any(result[name][0].any() for result in results for name in result)


@each("bad", [float("nan"), float("inf")])
@each("spec", [*PHASED, "hierarchical:ranks_per_node=1", "allgather"])
@each("how", [{}, {"momentum": gaussiank.MomentumCorrection()}], ids=["plain", "momentum"])
def test_nonfinite_reaches_all_and_enters_no_residual(three_workers: Any, spec: str, bad: float, how: Any) -> None:
    assert three_workers.run(overflowing, bad, {"collective": spec, **how}) == [(True, True, True)] * 3


@each("spec", PHASED)
def test_raise_names_the_parameter_on_every_worker(three_workers: Any, spec: str) -> None:
    for message in three_workers.run(refusing, spec):
        assert "gradient of third must be finite, got infinity or NaN on some worker in step 0." in message


def refusing(rank: int, world_size: int, spec: str, compressor: str = "topk") -> str:
    model = DDP(Given(), **SMALL_BUCKETS)
    gaussiank.compress(model, density=0.02, on_nonfinite="raise", collective=spec, compressor=compressor)
    fed = feed(rank, 0)
    if rank == 0:
        fed["third"][7] = float("nan")
    try:
        model(fed).backward()
    except RuntimeError as error:
        first = str(error)
    model.zero_grad()
    model(feed(rank, 1)).backward()  # the exchange itself was in order, so the next one is too
    return first


@pytest.mark.parametrize(
    "how",
    [
        {"density": 0.02, "collective": "split"},
        {"density": 0.1, "collective": "allgather", "compressor": "gaussiank:mode=published"},
        {"density": 0.02, "collective": "leader", "momentum": gaussiank.MomentumCorrection()},
    ],
    ids=["split's borders", "all-gather's room", "leader's turn"],
)
def test_resume_goes_on_to_the_bit(three_workers: Any, how: dict[str, Any]) -> None:
    assert three_workers.run(resumed, how) == [True] * 3


def under(rank: int, world_size: int, spec: str, name: str, *arguments: Any) -> Any:
    """Run a worker of the hook's tests with another collective than the default."""
    compress, gaussiank.compress = gaussiank.compress, partial(gaussiank.compress, collective=spec)
    try:
        return getattr(hook_tests, name)(rank, world_size, *arguments)
    finally:
        gaussiank.compress = compress


@each("spec", PHASED)
def test_unused_parameters_keep_their_residual(three_workers: Any, spec: str) -> None:
    results = three_workers.run(under, spec, "with_unused")
    assert_nothing_lost([result for result, _ in results])
    assert all(alone for _, alone in results)


@each("spec", PHASED)
def test_join_accumulation_and_embeddings(three_workers: Any, spec: str) -> None:
    assert_nothing_lost(three_workers.run(under, spec, "accumulating"))
    assert three_workers.run(under, spec, "sparse_embedding", "bucket") == [(True, 150)] * 3
    results = three_workers.run(under, spec, "joined")
    applied = results[-1][1]
    assert all(torch.equal(result[1], applied) for result in results)
    kept, given = (torch.stack([result[part] for result in results]).sum(0) for part in (0, 2))
    torch.testing.assert_close(kept + 3 * applied, given, rtol=0, atol=2e-5)


@each("spec", PHASED)
def test_several_models_in_one_backward(three_workers: Any, spec: str) -> None:
    assert_nothing_lost([result for result, _, _ in three_workers.run(under, spec, "several")])


def misused(rank: int, world_size: int) -> list[str]:
    attempts: list[dict[str, Any]] = [
        {"collective": "alltoall"},
        {"collective": "split:size=2"},
        {"collective": "split:slack=0"},
        {"collective": "split:slack=1:slack=2"},
        {"collective": "split:trim=perhaps"},
        {"collective": "allgather:slack=0.5"},
        {"collective": "auto:candidates=dense+ring"},
        {"collective": "auto:mbit=-1"},
        {"collective": "hierarchical:inside=both"},
        {"collective": "hierarchical:ranks_per_node=-1"},
        {"collective": "split", "compressor": "randomk:feedback=false"},
        {"timeout_s": 0},
        {"timeout_s": float("inf")},
        {"collective": "split" if rank else "tree"},
        {"timeout_s": 10.0 + rank},
    ]
    messages = []
    for how in attempts:
        try:
            gaussiank.compress(DDP(Given()), **how)
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_misuse_gets_one_sentence(two_workers: Any) -> None:
    beginnings = [
        "collective must be one of dense, allgather, split, leader, tree, hierarchical, auto, got 'alltoall'. Correct ",
        "settings of split must be among trim=..., slack=..., rebalance=..., got 'size=2'. Correct 'split:size=2'.",
        "slack must be above 0, got 0.0.",
        "slack of split must be given once, got 'split:slack=1:slack=2'. Leave one out.",
        "trim of split must be a bool, got 'perhaps'.",
        "slack must be at least 1, got 0.5.",
        "candidates must be among dense, allgather, split, leader, tree, hierarchical, got 'ring'. Join them by +.",
        "mbit must be at least 0, got -1.0.",
        "inside must be sparse or dense, got 'both'.",
        "ranks_per_node must be at least 1, or 0 to ask torchrun, got -1.",
        "collective must send nothing back to a compressor without feedback, got Split(",
        "timeout_s must be above 0 and at most 31536000, a year, got 0. 300 waits for five minutes.",
        "timeout_s must be above 0 and at most 31536000, a year, got inf. 300 waits for five minutes.",
        "collective must be the same on every worker, got 'Tree()' on rank 0 and 'Split(",
        "timeout_s must be the same on every worker, got '10.0' on rank 0 and '11.0' on rank 1.",
    ]
    for messages in two_workers.run(misused):
        for message, beginning in zip(messages, beginnings, strict=True):
            assert message.startswith(beginning)


def sent(rank: int, world_size: int, spec: str) -> tuple[int, int]:
    model = DDP(Given())
    compression = gaussiank.compress(model, density=0.01, collective=spec, wire="eliasfano+bf16")
    model(feed(rank, 0)).backward()
    return compression.metrics.sent_bytes, compression.metrics.k


@each("spec", ["allgather", "split", "tree"])
def test_metrics_count_the_bytes_of_every_message(workers: Any, spec: str) -> None:
    results = workers.run(sent, spec)
    expected = parse_policy(spec).traffic(1076, results[0][1], workers.world_size, Wire("eliasfano", "bf16")).sent_bytes
    assert sum(sent_bytes for sent_bytes, _ in results) == pytest.approx(expected * workers.world_size, abs=8)


def counted_by_a_made_up_clock(rank: int, world_size: int) -> tuple[list[int], Totals]:
    """Train over a link that is always the same, by a clock on which every step takes as long."""
    link, ticks = Link(5e-5, 2.5e8, 1e-9, 1e-4), itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: 0.01 * next(ticks), process_time=lambda: 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "measure", lambda group: link)
        patch.setattr(tuner, "remeasure", lambda comm, last: link)
        patch.setattr(tuner, "time", clock)
        how = {"density": 0.02, "collective": "auto:every=10"}
        return counted(rank, world_size, 80, SMALL_BUCKETS, how, torch.float32)


def test_auto_tries_the_other_way_on_all_workers_at_once_and_loses_nothing(workers: Any) -> None:
    results = workers.run(counted_by_a_made_up_clock)
    assert (len(set(results[0][0])) > 1) == (len(results) > 1), "both ways, where there is somebody to send to"
    assert all(kept == results[0][0] for kept, _ in results)
    assert_nothing_lost([totals for _, totals in results], atol=5e-5)
