"""Every collective in real DDP: nothing is lost, whatever it sends back, and whatever DDP is told to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.dist.test_hook import assert_nothing_lost, run

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


@pytest.mark.parametrize("scope", ["bucket", "model"])
@pytest.mark.parametrize("spec", SPECS)
def test_nothing_is_lost(workers: Any, spec: str, scope: str) -> None:
    how = {"density": 0.05, "scope": scope, "collective": spec}
    assert_nothing_lost(workers.run(run, 6, SMALL_BUCKETS, how, torch.float32))


@pytest.mark.parametrize("compressor", ["gaussiank:mode=published", "randomk", "gaussiank"])
@pytest.mark.parametrize("spec", SPECS)
def test_nothing_is_lost_by_other_compressors(workers: Any, spec: str, compressor: str) -> None:
    how = {"density": 0.05, "collective": spec, "compressor": compressor}
    assert_nothing_lost(workers.run(run, 4, {}, how, torch.float32))
