"""Measures torch's collectives between the workers, by message size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank.environment import number_from

from .probe_file import Points
from .stopwatch import Effort, now

TOO_LONG_S = 2.0
"""A message that takes longer ends its row: the next would take ten times as long."""

# all_gather_into_tensor has had this name since torch 2.13, which deprecates the old one
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def measure_links(device: torch.device, effort: Effort, group: dist.ProcessGroup | None = None) -> dict[str, Points]:
    """Time each collective at each size, of the slowest worker of all; the same result on all of them.

    Args:
        device: where messages are.
        effort: how often, and at which sizes.
        group: workers among whom to measure; all groups measure at once. None: all workers.
    """
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return {}
    first = dist.get_process_group_ranks(group)[0]
    work: dict[str, Callable[[int], Callable[[], object]]] = {
        "all_reduce": lambda size: _with(_floats(size, device), lambda vector: dist.all_reduce(vector, group=group)),
        "all_gather": lambda size: _gather(size, world_size, device, group),
        "all_to_all": lambda size: _all_to_all(size, world_size, device, group),
        "broadcast": lambda size: _with(
            _floats(size, device), lambda vector: dist.broadcast(vector, first, group=group)
        ),
    }
    return {name: _row(make, device, effort) for name, make in work.items()}


def node_group() -> dist.ProcessGroup | None:
    """Return a group of this node's workers; None where all are on one node, or each on its own."""
    world_size, here = dist.get_world_size(), number_from("LOCAL_WORLD_SIZE", 1, least=1)
    if here in (1, world_size) or world_size % here:
        return None
    first = dist.get_rank() - dist.get_rank() % here
    group: dist.ProcessGroup = dist.new_group(list(range(first, first + here)), use_local_synchronization=True)
    return group


def measure_contention(compute: Callable[[], object], device: torch.device, effort: Effort) -> float:
    """Return the seconds that ``compute`` loses for each second that a message is under way at the same time."""
    if dist.get_world_size() == 1:
        return 0.0
    alone_s = _agreed_s(compute, device, effort)
    vector = _floats(1_000_000, device)
    message_s = _agreed_s(lambda: dist.all_reduce(vector), device, effort)
    rounds = max(1, min(50, round(alone_s / message_s)))

    lost: list[float] = []
    for _ in range(effort.least):
        dist.barrier()
        began = time.perf_counter()
        works = [dist.all_reduce(vector, async_op=True) for _ in range(rounds)]
        compute()
        lost.append(now(device) - began - alone_s)
        for message in works:
            assert message is not None  # async_op
            message.wait()
    shared_s = min(alone_s, rounds * message_s)
    mean = torch.tensor([max(0.0, statistics.median(lost)) / shared_s], dtype=torch.float64)
    dist.all_reduce(mean)
    return float(mean / dist.get_world_size())


def _row(make: Callable[[int], Callable[[], object]], device: torch.device, effort: Effort) -> Points:
    points: list[tuple[float, float]] = []
    for size in effort.message_bytes:
        seconds = _agreed_s(make(size), device, effort)
        points.append((float(size), seconds))
        if seconds > TOO_LONG_S:
            break
    return tuple(points)


def _agreed_s(work: Callable[[], object], device: torch.device, effort: Effort) -> float:
    """Return the median over runs of the slowest worker's time; all workers make as many runs."""
    work()
    taken: list[float] = []
    while len(taken) < effort.least or (len(taken) < effort.most and sum(taken) < effort.enough_s):
        dist.barrier()
        began = now(device)
        work()
        slowest = torch.tensor([now(device) - began], dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        taken.append(float(slowest))  # the same on all, so that all stop together
    return statistics.median(taken)


def _floats(size: int, device: torch.device) -> Tensor:
    return torch.zeros(size // 4, device=device)


def _with(vector: Tensor, operation: Callable[[Tensor], object]) -> Callable[[], object]:
    return lambda: operation(vector)


def _gather(size: int, world_size: int, device: torch.device, group: dist.ProcessGroup | None) -> Callable[[], object]:
    row = torch.zeros(size, dtype=torch.uint8, device=device)
    rows = torch.zeros(world_size * size, dtype=torch.uint8, device=device)
    return lambda: _all_gather(rows, row, group=group)


def _all_to_all(
    size: int, world_size: int, device: torch.device, group: dist.ProcessGroup | None
) -> Callable[[], object]:
    rows = torch.zeros(world_size * size, dtype=torch.uint8, device=device)
    received = torch.zeros_like(rows)
    return lambda: dist.all_to_all_single(received, rows, group=group)
