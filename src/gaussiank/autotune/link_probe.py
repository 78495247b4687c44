"""How fast messages travel between workers: given, or measured, and the same number on every worker."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank import ops
from gaussiank.comm import Communicator

PROBE_BYTES = 1 << 22
"""Most bytes of a message that measures the link."""
_LONGER = 16  # times the message before, where that was over too soon to tell; then it takes so many times as long
_AT_ONCE_BYTES = 1 << 28  # that arrive of such messages, on an accelerator: one tells what it takes to start it
_SELECTED_NUMEL = 1 << 18  # on a CPU
_SELECTED_THERE = 1 << 24  # on an accelerator, which is done with less before it was told to begin


@dataclass(frozen=True)
class Link:
    """A link between two workers, and how fast they fill it.

    Args:
        latency_s: seconds that the shortest message takes between two workers.
        bytes_per_s: bytes a second in one direction.
        select_s: seconds for each entry of a gradient that accumulation and selection take.
        straight_s: seconds that the shortest message takes from each worker to all others at once.
    """

    latency_s: float
    bytes_per_s: float
    select_s: float
    straight_s: float


def measure(group: dist.ProcessGroup | None = None) -> Link:
    """Time short and long messages, and a selection, on all workers at once.

    Of several tries the fastest counts, and of all workers the slowest, so that all get the same numbers.

    Args:
        group: process group, or None for the default one; all its workers must call it. One worker has a perfect link.
    """
    comm = Communicator(group)
    if comm.world_size == 1:
        return Link(0.0, float("inf"), 0.0, 0.0)
    numel = _SELECTED_NUMEL if _device(comm) == "cpu" else _SELECTED_THERE
    select_s = min(_selection_s(comm, numel) for _ in range(3)) / numel
    return _speed(comm, 1 << 16, select_s, enough_s=0.02, tries=9)


def remeasure(comm: Communicator, last: Link) -> Link:
    """Measure latency and bandwidth again, with shorter messages and fewer.

    They begin short again whatever the link was: a message for a fast link takes seconds when it has become slow.

    Args:
        comm: connects at least two workers, all of which must call it.
        last: what was measured before.
    """
    return _speed(comm, 1 << 14, last.select_s, enough_s=0.0025, tries=2)


def max_over_workers(comm: Communicator, seconds: Sequence[float]) -> list[float]:
    """Return the largest of all workers' numbers, each for itself; all workers must call it."""
    return [float(most) for most in comm.all_reduce(as_tensor(comm, seconds), dist.ReduceOp.MAX).wait()]


def as_tensor(comm: Communicator, numbers: Sequence[float]) -> Tensor:
    """Return float64 numbers where the group's messages must be."""
    return torch.tensor(numbers, dtype=torch.float64, device=_device(comm))


def _device(comm: Communicator) -> str:
    """Return where the group's messages are: on the GPU where NCCL carries those, whatever a CPU has beside it."""
    return "cuda" if "cuda:nccl" in dist.get_backend_config(comm.group) else "cpu"


def _speed(comm: Communicator, length: int, select_s: float, *, enough_s: float, tries: int) -> Link:
    """Measure the shortest messages, and the bytes a second of one that takes long enough to tell."""
    peers = comm.world_size - 1
    zeros = torch.zeros(PROBE_BYTES, dtype=torch.uint8, device=_device(comm))
    max_over_workers(comm, [0.0])  # so that all begin together
    latency_s = min(_message_s(comm, zeros[:1]) for _ in range(tries)) / peers
    straight_s = min(_message_s(comm, zeros[:1], straight=True) for _ in range(tries))
    messages, most = 1, 1 if zeros.is_cpu else max(1, _AT_ONCE_BYTES // (PROBE_BYTES * comm.world_size))
    while True:
        took_s = _message_s(comm, zeros[:length], messages)
        longest = length >= PROBE_BYTES and messages >= most
        if took_s < 4 * enough_s and (took_s >= enough_s or longest):  # or noise; above, surely slow
            took_s = min(took_s, *(_message_s(comm, zeros[:length], messages) for _ in range(2)))
        sending_s = took_s - peers * latency_s  # what waiting adds must not pass for a slow link
        if sending_s >= enough_s or longest:
            _give_back()
            return Link(latency_s, peers * length * messages / max(sending_s, 1e-9), select_s, straight_s)
        if length < PROBE_BYTES:
            length = min(_LONGER * length, PROBE_BYTES)
        else:
            messages = min(_LONGER * messages, most)


def _give_back() -> None:
    """Let glibc return what a probe took: Gloo allocates as much again in its threads, whose arenas would keep it."""
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)


_MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _message_s(comm: Communicator, sent: Tensor, messages: int = 1, *, straight: bool = False) -> float:
    """Time messages that all workers begin together, and let them begin the next ones so."""
    began = time.perf_counter()
    works = [comm.all_gather(sent, straight=straight) for _ in range(messages)]
    works[-1].wait()[-1, -1:].cpu()  # they run in order; of a GPU's one byte tells, and no bus is measured
    return max_over_workers(comm, [time.perf_counter() - began])[0]


def _selection_s(comm: Communicator, numel: int) -> float:
    grad = torch.linspace(-1, 1, numel, dtype=torch.float32, device=_device(comm)).sin_()
    began = time.perf_counter()
    accumulated = ops.accumulate(grad, grad, out=torch.empty_like(grad))
    ops.select_topk(accumulated, numel // 1000).cpu()
    return max_over_workers(comm, [time.perf_counter() - began])[0]
