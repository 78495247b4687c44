"""How fast messages travel between workers: given, or measured, and the same number on every worker."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from .wire import Wire

_ENOUGH_S = 0.02  # a message that takes this long is long enough to tell bandwidth from latency
_LARGEST_BYTES = 1 << 22


@dataclass(frozen=True)
class Link:
    """A link between two workers.

    Args:
        latency_s: seconds that the shortest message takes.
        bytes_per_s: bytes a second in one direction.
    """

    latency_s: float
    bytes_per_s: float


def measure(group: dist.ProcessGroup | None = None, device: str = "cpu") -> Link:
    """Time short and long messages among all workers at once; the slowest worker's time counts, on every worker.

    Args:
        group: process group, or None for the default one; all its workers must call it. One worker has a perfect link.
        device: where the messages are.
    """
    wire = Wire(group)
    peers = wire.world_size - 1
    if not peers:
        return Link(0.0, float("inf"))
    latency_s = statistics.median(_time_s(wire, 1, device) for _ in range(9)) / peers
    length, took_s = 1 << 14, 0.0
    while took_s < _ENOUGH_S and length < _LARGEST_BYTES:
        length *= 4
        took_s = min(_time_s(wire, length, device) for _ in range(2))
    return Link(latency_s, peers * length / max(took_s - peers * latency_s, 1e-9))


def _time_s(wire: Wire, length: int, device: str) -> float:
    row = torch.zeros(length, dtype=torch.uint8, device=device)
    wire.all_reduce(torch.zeros(1, device=device)).wait()  # so that all begin together
    began = time.perf_counter()
    wire.all_gather(row).wait().cpu()
    slowest = torch.tensor([time.perf_counter() - began], dtype=torch.float64, device=device)
    return float(wire.all_reduce(slowest, dist.ReduceOp.MAX).wait())
