"""Up to sixteen ranks in one process, as threads of torch's own testing group: what each worker sends, and the mean.

The group knows no point-to-point messages and no futures of its own, so the tree and the executor are not in here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.each import each

from gaussiank.autotune import parse_policy
from gaussiank.codec import Wire
from gaussiank.sparse import SparseGradient

multi_threaded_pg = pytest.importorskip("torch.testing._internal.distributed.multi_threaded_pg")
isolate = getattr(torch._C._distributed_c10d, "_set_thread_isolation_mode", lambda on: None)

NUMEL, K = 20_000, 1000


def in_threads(world_size: int, function: Callable[[int], Any]) -> list[Any]:
    """Return what ``function(rank)`` returned on each rank."""
    results: list[Any] = [None] * world_size
    errors: list[BaseException] = []
    store = dist.HashStore()

    def work(rank: int) -> None:
        try:
            dist.init_process_group("threaded", rank=rank, world_size=world_size, store=store)
            results[rank] = function(rank)
        except BaseException as error:  # noqa: BLE001  the test must show it
            errors.append(error)
            multi_threaded_pg.ProcessLocalGroup.exception_handle(error)  # or the other ranks wait for ever
        finally:
            dist.destroy_process_group()

    isolate(True)
    multi_threaded_pg._install_threaded_pg()
    try:
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        multi_threaded_pg._uninstall_threaded_pg()
        isolate(False)
    if errors:
        raise errors[0]
    return results


def clustered(rank: int) -> SparseGradient:
    """Selections that pile up in the first tenth of the vector, as in a model whose first layer is the busy one."""
    generator = torch.Generator().manual_seed(rank)
    weights = torch.ones(NUMEL)
    weights[: NUMEL // 10] = 50
    indices = torch.multinomial(weights, K, generator=generator).sort().values.int()
    return SparseGradient(indices, torch.randn(K, generator=generator), NUMEL)


def exchanged(spec: str, steps: int, wire: str = "raw+fp32") -> Callable[[int], Any]:
    def exchange(rank: int) -> Any:
        collective, part, hint, sent = parse_policy(spec), clustered(rank), None, []
        for step in range(steps):
            message = collective.start(part, wire=Wire.parse(wire), capacity=K, step=step, hint=hint)
            out = torch.empty(NUMEL)
            outcome = message.finish(out)
            hint = outcome.hint
            sent.append(message.sent_bytes)
        entered = part.dense()
        if outcome.rejected is not None:
            entered -= outcome.rejected.dense()
        return sum(sent) / steps, out, entered, 0 if outcome.rejected is None else outcome.rejected.kept

    return exchange


@each("world_size", [2, 5, 16])
@each("spec", ["allgather", "split", "split:trim=false", "leader"])
def test_laws_hold_for_any_number_of_ranks(spec: str, world_size: int) -> None:
    results = in_threads(world_size, exchanged(spec, 3))
    mean = torch.stack([entered for _, _, entered, _ in results]).mean(0)
    for _, out, _, _ in results:
        assert torch.equal(out, results[0][1])
        torch.testing.assert_close(out, mean)


def mean_bytes(spec: str, world_size: int, steps: int, wire: str = "raw+fp32") -> float:
    results = in_threads(world_size, exchanged(spec, steps, wire))
    return sum(sent for sent, _, _, _ in results) / world_size


def test_split_sends_the_same_from_two_to_sixteen_workers() -> None:
    sent = {world_size: mean_bytes("split", world_size, 1) for world_size in (2, 4, 8, 16)}
    assert max(sent.values()) <= 1.3 * min(sent.values())
    assert max(sent.values()) <= 1.1 * 2 * K * 8


@each(("wire", "index_bytes", "value_bytes"), [("raw+fp32", 4, 4), ("rice+bf16", 0.8, 2)])
def test_leader_sends_no_more_than_a_limit_whatever_the_number_of_workers(
    wire: str, index_bytes: float, value_bytes: float
) -> None:
    sent = {world_size: mean_bytes("leader", world_size, 1, wire) for world_size in (2, 4, 8, 16)}
    limit = (index_bytes + 2 * value_bytes) * K
    assert max(sent.values()) <= 1.02 * limit
    assert sent[16] <= 1.3 * sent[4]
    # the share (P - 1) / P of any broadcast and all-reduce, which is a half for two workers, is all that is left of P
    for world_size, bytes_sent in sent.items():
        assert bytes_sent == pytest.approx(limit * (world_size - 1) / world_size, rel=0.03)


def test_all_gather_is_linear() -> None:
    sent = {world_size: mean_bytes("allgather", world_size, 1) for world_size in (2, 4, 16)}
    assert sent[4] == 3 * sent[2]
    assert sent[16] == 15 * sent[2]


def test_borders_follow_the_load() -> None:
    """Fixed borders overflow where selections pile up; moved ones send back only what trimming has to."""
    fixed = sum(rejected for _, _, _, rejected in in_threads(8, exchanged("split:rebalance=false", 3)))
    moved = sum(rejected for _, _, _, rejected in in_threads(8, exchanged("split", 3)))
    assert moved < 0.75 * fixed
