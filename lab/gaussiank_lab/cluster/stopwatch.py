"""Times a piece of work until the median is steady enough, on the CPU or on CUDA."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Effort:
    """Say how long to measure.

    Args:
        least: runs of each piece of work.
        most: runs of a short one.
        enough_s: seconds after which a piece of work is not repeated.
        message_bytes: sizes of messages.
        numels: lengths of vectors; the model's own is added.
        entries: entries of payloads.
        steps: training steps.
    """

    least: int = 5
    most: int = 50
    enough_s: float = 0.2
    message_bytes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    numels: tuple[int, ...] = (10_000, 100_000, 1_000_000, 4_000_000)
    entries: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    steps: int = 15


QUICK = Effort(3, 10, 0.02, (1_000, 100_000, 1_000_000), (10_000, 100_000), (100, 10_000), 5)
"""For a first look: medians of few runs, which a busy machine shifts."""


def now(device: torch.device) -> float:
    """Return the clock once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median_s(work: Callable[[], object], device: torch.device, effort: Effort) -> float:
    """Return the median seconds of ``work``, after one run that does not count."""
    work()
    taken: list[float] = []
    while len(taken) < effort.least or (len(taken) < effort.most and sum(taken) < effort.enough_s):
        began = now(device)
        work()
        taken.append(now(device) - began)
    return statistics.median(taken)
