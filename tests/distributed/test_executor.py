"""The executor in real DDP: order under random delays, a time-out, and a worker that is killed."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import torch
import torch.distributed as dist
from tests.distributed.conftest import Workers, _started
from tests.each import each
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank.codec import Wire
from gaussiank.comm import Communicator, executor_of

LAYERS = 50


class Layers(nn.Module):
    """Fifty parameters, one bucket each, whose gradients are what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList(nn.Parameter(torch.zeros(400)) for _ in range(LAYERS))

    def forward(self, fed: list[Tensor]) -> Tensor:
        total = torch.zeros(())
        for layer, grad in zip(self.layers, fed, strict=True):
            total = total + (layer * grad).sum()
        return total


def delayed(rank: int, world_size: int, spec: str) -> tuple[int, Tensor, Tensor, Tensor]:
    """Three steps with pauses of up to 3 ms before gradients become ready, different ones on each worker."""
    model = DDP(Layers(), bucket_cap_mb=0.001)
    delays = random.Random(rank)

    def pause(grad: Tensor) -> None:
        if delays.random() < 0.3:
            time.sleep(delays.random() * 3e-3)

    for parameter in model.parameters():
        parameter.register_hook(pause)
    compression = gaussiank.compress(model, density=0.02, collective=spec)
    means, grads = torch.zeros(LAYERS * 400, dtype=torch.float64), torch.zeros(LAYERS * 400, dtype=torch.float64)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        model.zero_grad()
        fed = [torch.randn(400, generator=generator) for _ in range(LAYERS)]
        model(fed).backward()
        means += torch.cat([layer.grad for layer in model.module.layers])
        grads += torch.cat(fed)
    kept = torch.cat([compression.feedback.residual(f"layers.{i}") for i in range(LAYERS)])
    return compression._reducer._parts, kept, means, grads


MIXED = "auto:mbit=40:latency_us=60:select_ns=0:touch_ns=0:message_us=0:candidates=dense+allgather+split+tree"


@each("spec", ["allgather", "split", "split:trim=false", "leader", "tree", "hierarchical:ranks_per_node=1", MIXED])
def test_fifty_buckets_with_random_delays(three_workers: Workers, spec: str) -> None:
    results = three_workers.run(delayed, spec)
    assert [buckets for buckets, _, _, _ in results] == [LAYERS] * 3
    assert all(torch.equal(means, results[0][2]) for _, _, means, _ in results)
    kept, given = (torch.stack([result[part].double() for result in results]).sum(0) for part in (1, 3))
    torch.testing.assert_close(kept + 3 * results[0][2], given, rtol=0, atol=2e-5)


def abandoned(rank: int, world_size: int, spec: str, timeout_s: float) -> tuple[str, float]:
    """Every worker but the last exchanges a gradient; the last waits until they have given up."""
    model = DDP(Layers(), bucket_cap_mb=0.001)
    gaussiank.compress(model, collective=spec, timeout_s=timeout_s)
    message, began = "", time.perf_counter()
    if rank < world_size - 1:
        try:
            model([torch.ones(400)] * LAYERS).backward()
        except RuntimeError as error:
            message = str(error)
    took_s = time.perf_counter() - began
    dist.barrier()
    return message, took_s


@each(("spec", "timeout_s"), [("allgather", 1.0), ("split", 1.1), ("tree", 1.2)])
def test_timeout_names_rank_and_bucket(three_workers: Workers, spec: str, timeout_s: float) -> None:
    results = three_workers.run(abandoned, spec, timeout_s)
    for rank, (message, took_s) in enumerate(results[:-1]):
        assert f"rank {rank} lost bucket 0 of step 0 (layers." in message
        assert f"Set timeout_s above {timeout_s:g}" in message
        assert took_s < timeout_s + 10
    # who gives up first may close another's connection before its own time is up
    assert any("Timed out" in message for message, _ in results[:-1])
    assert any("Nothing was heard from rank 2." in message for message, _ in results[:-1])


KEPT = []  # or else a new executor is made, whose messages are not lost


def abandoned_but_kept(rank: int, world_size: int, timeout_s: float) -> None:
    KEPT.append(executor_of(None, timeout_s))
    abandoned(rank, world_size, "split", timeout_s)


def later_fails_at_once(rank: int, world_size: int, timeout_s: float) -> str:
    """Use the executor of a group whose message was lost in an earlier test."""
    executor = executor_of(None, timeout_s)
    how = {"multi_phase": True, "device": torch.device("cpu")}
    done = executor.submit(lambda: "another bucket", lambda group: 1 / 0, lambda exchange: torch.ones(1), **how)
    try:
        done.wait()
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_what_follows_a_lost_message_fails_at_once(three_workers: Workers) -> None:
    three_workers.run(abandoned_but_kept, 1.3)
    for rank, message in enumerate(three_workers.run(later_fails_at_once, 1.3)[:-1]):
        assert f"rank {rank} lost bucket 0 of step 0" in message


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("stack expects each tensor to be equal size")


def failing(rank: int, world_size: int, spec: str, timeout_s: float) -> str:
    """Train; the last worker cannot encode at the second step."""
    model = DDP(Layers(), bucket_cap_mb=0.001)
    gaussiank.compress(model, density=0.02, collective=spec, timeout_s=timeout_s)
    message = ""
    pack = Wire.pack
    try:
        for step in range(2):
            model.zero_grad()
            if step == 1 and rank == world_size - 1:
                Wire.pack = fail  # type: ignore[method-assign]
            model([torch.ones(400)] * LAYERS).backward()
    except RuntimeError as error:
        message = str(error)
    finally:
        Wire.pack = pack  # type: ignore[method-assign]
    dist.barrier()
    return message


@each("spec", ["allgather", "split"])
def test_an_error_of_one_worker_alone_is_told_as_its_own(worker_groups: Any, spec: str) -> None:
    (own,) = (worker_groups.get(1) or _started(worker_groups, 1)).run(failing, spec, 1.4)
    assert "rank 0 could not exchange bucket 0 of step 1 (layers." in own
    assert "stack expects each tensor to be equal size. The error is this worker's own" in own
    assert "A worker has ended" not in own


def killed(rank: int, world_size: int, spec: str) -> tuple[str, float]:
    """Train; the last worker is killed between two messages of the third step's exchange."""
    model = DDP(Layers(), bucket_cap_mb=0.001)
    gaussiank.compress(model, density=0.02, collective=spec, timeout_s=20.0)
    step, sends = 0, 0

    def die(self: Communicator, *arguments: Any) -> Any:
        nonlocal sends
        sends += step == 2
        if sends == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return send(self, *arguments)

    if rank == world_size - 1:
        send, Communicator.all_gather = Communicator.all_gather, die  # type: ignore[method-assign]
    began = time.perf_counter()
    try:
        for step in range(3):  # noqa: B007  read by die
            model.zero_grad()
            began = time.perf_counter()
            model([torch.ones(400)] * LAYERS).backward()
    except RuntimeError as error:
        return str(error), time.perf_counter() - began
    return "no error", 0.0


@each("spec", ["split", "allgather"])
def test_kill_of_a_worker_ends_the_others(spec: str) -> None:
    workers = Workers(3)
    answers = workers.run_some(killed, spec)
    workers.stop()
    assert answers[2] is None
    for rank, answer in enumerate(answers[:2]):
        assert answer is not None
        message, took_s = answer
        assert f"rank {rank} lost bucket " in message
        assert " of step 2 (layers." in message
        assert "A worker has ended, raised, or stands still" in message
        assert took_s < 25
