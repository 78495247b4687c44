"""How fast messages travel between workers: given, or measured, and the same number on every worker."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from gaussiank import ops

from .line import Line

_ENOUGH_S = 0.02  # a message that takes this long is long enough to tell bandwidth from latency
_LARGEST_BYTES = 1 << 22
_SELECTED_NUMEL = 1 << 18


@dataclass(frozen=True)
class Link:
    """A link between two workers, and how fast they fill it.

    Args:
        latency_s: seconds that the shortest message takes.
        bytes_per_s: bytes a second in one direction.
        select_s: seconds for each entry of a gradient that accumulation and selection take.
    """

    latency_s: float
    bytes_per_s: float
    select_s: float


def measure(group: dist.ProcessGroup | None = None, device: str = "cpu") -> Link:
    """Time short and long messages, and a selection, on all workers at once.

    Of several tries the fastest counts, and of all workers the slowest, so that all get the same numbers.

    Args:
        group: process group, or None for the default one; all its workers must call it. One worker has a perfect link.
        device: where the messages are.
    """
    line = Line(group)
    peers = line.world_size - 1
    if not peers:
        return Link(0.0, float("inf"), 0.0)
    latency_s = min(_message_s(line, 1, device) for _ in range(9)) / peers
    length, took_s = 1 << 14, 0.0
    while took_s < _ENOUGH_S and length < _LARGEST_BYTES:
        length *= 4
        took_s = min(_message_s(line, length, device) for _ in range(3))
    bytes_per_s = peers * length / max(took_s - peers * latency_s, 1e-9)
    return Link(latency_s, bytes_per_s, min(_select_s(line, device) for _ in range(3)) / _SELECTED_NUMEL)


def _message_s(line: Line, length: int, device: str) -> float:
    row = torch.zeros(length, dtype=torch.uint8, device=device)
    line.all_reduce(torch.zeros(1, device=device)).wait()  # so that all begin together
    began = time.perf_counter()
    line.all_gather(row).wait().cpu()
    return _slowest(line, time.perf_counter() - began, device)


def _select_s(line: Line, device: str) -> float:
    grad = torch.linspace(-1, 1, _SELECTED_NUMEL, device=device).sin_()
    began = time.perf_counter()
    accumulated = ops.accumulate(grad, grad, out=torch.empty_like(grad))
    ops.select_topk(accumulated, _SELECTED_NUMEL // 1000).cpu()
    return _slowest(line, time.perf_counter() - began, device)


def _slowest(line: Line, took_s: float, device: str) -> float:
    slowest = torch.tensor([took_s], dtype=torch.float64, device=device)
    return float(line.all_reduce(slowest, dist.ReduceOp.MAX).wait())
