"""What a step of DDP's hook says that it sent, and how long it took."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from tests.distributed.test_hook import SHAPES, Given, feed
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank.codec import Wire
from gaussiank.codec.native import Packed
from gaussiank.metrics import Metrics
from gaussiank.reducer import reducer


def measured(rank: int, world_size: int) -> dict[str, float]:
    model = DDP(Given())
    compression = gaussiank.compress(model, density=0.01)
    model(feed(rank, 0)).backward()
    return {**vars(compression.metrics), "compression": compression.metrics.compression}


def test_metrics_are_what_was_sent(workers: Any) -> None:
    numel = sum(torch.Size(shape).numel() for shape in SHAPES.values())
    peers = workers.world_size - 1
    for metrics in workers.run(measured):
        assert (metrics["numel"], metrics["k"], metrics["kept"]) == (numel, round(0.01 * numel), round(0.01 * numel))
        row_bytes = Wire().max_bytes(round(0.01 * numel), numel) + 8  # nothing is known at the first step
        assert metrics["sent_bytes"] == peers * row_bytes
        assert metrics["dense_bytes"] == 2 * peers * 4 * numel // workers.world_size
        assert metrics["compression"] == (metrics["dense_bytes"] / metrics["sent_bytes"] if peers else 1.0)
        assert metrics["select_s"] > 0
        assert metrics["exchange_s"] > 0


def measured_encoding_an_hour(rank: int, world_size: int) -> Metrics:
    late_s, pack = [0.0], Wire.pack

    def slow_pack(*arguments: Any, **more: Any) -> Packed:
        late_s[0] += 3600
        return pack(*arguments, **more)

    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + late_s[0])
    with mock.patch.object(Wire, "pack", slow_pack), mock.patch.object(reducer, "time", clock):
        model = DDP(Given())
        compression = gaussiank.compress(model, density=0.01)
        model(feed(rank, 0)).backward()
    return compression.metrics


def test_encoding_is_selection_and_not_exchange(workers: Any) -> None:
    for metrics in workers.run(measured_encoding_an_hour):
        assert metrics.calls <= metrics.select_s // 3600  # more where the wire is packed twice
        assert metrics.exchange_s < 3600


def kernel_sent_bytes() -> int:
    """Bytes that this process has handed to the kernel to write, sockets included."""
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])


def accounted_and_real(rank: int, world_size: int, density: float) -> tuple[int, int]:
    model = DDP(nn.Linear(1000, 1000))
    compression = gaussiank.compress(model, density=density)
    inputs = torch.randn(4, 1000)
    model(inputs).sum().backward()
    model(inputs).sum().backward()  # buckets are rebuilt, which sends something too
    dist.barrier()
    before, accounted = kernel_sent_bytes(), 0
    for _ in range(5):
        model(inputs).sum().backward()
        accounted += compression.metrics.sent_bytes
    return accounted, kernel_sent_bytes() - before


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts the bytes that a process writes")
@pytest.mark.parametrize("density", [0.01, 1.0])
def test_sent_bytes_are_those_the_kernel_counts(workers: Any, density: float) -> None:
    for accounted, real in workers.run(accounted_and_real, density):
        assert accounted <= real <= 1.01 * accounted + 2000  # Gloo's own framing
