"""Twenty steps of every collective, five compressors and three wires end with the bits that e702fea gave.

Rebuilding the house must not change what it computes. Gradients are made of integers, so that they are the same on
every machine. The suite takes a ninth of the combinations, ``GAUSSIANK_BITS=all`` every one. To record anew, because a
change of bits is meant and said in CHANGELOG: delete ``fixtures/bits.json`` and run this with ``GAUSSIANK_BITS=all``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank

RECORDED = Path(__file__).parents[1] / "fixtures" / "bits.json"
SIZES = (700, 64, 500, 1)
COLLECTIVES = ("allgather", "split", "leader", "tree", "hierarchical", "auto:mbit=1:latency_us=10", "dense")
COMPRESSORS = ("topk", "gaussiank", "dgc", "trimmedtopk", "randomk")
WIRES = ("raw+fp32", "rice+bf16-rice", "chunks+4bit")


class Fed(nn.Module):
    """A model whose gradients are what it is fed, and a little of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.ones(size) for size in SIZES)

    def forward(self, fed: list[Tensor]) -> Tensor:
        return torch.stack([(w * g + w * w / 64).sum() for w, g in zip(self.weights, fed, strict=True)]).sum()


def fed(rank: int, step: int) -> list[Tensor]:
    """Heavy tails: products of integers."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    drawn = [torch.randint(-99, 100, (4, size), generator=generator).float() for size in SIZES]
    return [(one[0] * one[1] * one[2] * one[3]) * 2.0**-24 for one in drawn]


def combinations(world_size: int) -> list[tuple[str, str, str]]:
    every = itertools.product(enumerate(COLLECTIVES), enumerate(COMPRESSORS), enumerate(WIRES))
    asked = os.environ.get("GAUSSIANK_BITS") == "all"
    return [
        (one, two, wire)
        for (i, one), (j, two), (k, wire) in every
        if asked or (i + 2 * j + 4 * k + world_size) % 9 == 0
    ]


def ends(rank: int, world_size: int) -> dict[str, bytes]:
    """Parameters and residuals of this worker after twenty steps, hashed, for every combination."""
    found = {}
    for collective, compressor, wire in combinations(world_size):
        node = f":ranks_per_node={2 if world_size == 4 else world_size}" if collective == "hierarchical" else ""
        model = DDP(Fed(), bucket_cap_mb=0.001)
        compression = gaussiank.compress(model, 0.02, compressor=compressor, collective=collective + node, wire=wire)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for step in range(20):
            optimizer.zero_grad()
            model(fed(rank, step)).backward()
            optimizer.step()
        held = [*model.parameters(), compression.feedback.residuals([f"weights.{i}" for i in range(len(SIZES))])]
        end = b"".join(one.detach().numpy().tobytes() for one in held)
        found[f"{world_size} {collective} {compressor} {wire}"] = hashlib.sha256(end).digest()
    return found


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_training_ends_with_the_recorded_bits(request: Any, world_size: int) -> None:
    workers = request.getfixturevalue({2: "two_workers", 3: "three_workers", 4: "four_workers"}[world_size])
    results = workers.run(ends)
    hashes = {key: hashlib.sha256(b"".join(one[key] for one in results)).hexdigest()[:12] for key in results[0]}
    recorded: dict[str, str] = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if not any(key.startswith(f"{world_size} ") for key in recorded):
        RECORDED.write_text(json.dumps({**recorded, **hashes}, indent=0))
        pytest.fail("recorded: nothing was compared")
    assert {key: recorded[key] for key in hashes} == hashes
