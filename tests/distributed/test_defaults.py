"""A step is the same, bit for bit, whatever torch's default dtype and device are."""

from __future__ import annotations

import torch
from tests.distributed.conftest import Workers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank

WAYS = ("allgather", "split", "leader", "tree", "hierarchical:ranks_per_node=1", "auto:every=1")


def steps(rank: int, default: torch.dtype | str, fed: Tensor, way: str, wire: str) -> list[Tensor]:
    """Set the default before the model is compressed; a device, which torch's own set-up does not stand, after."""
    module = nn.Linear(60, 40, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        module.weight.copy_(fed[:40])
        module.bias.zero_()
    model = DDP(module)
    try:
        if isinstance(default, torch.dtype):
            torch.set_default_dtype(default)
        gaussiank.compress(model, 0.02, collective=way, wire=wire)
        if isinstance(default, str):
            torch.set_default_device(default)
        means = []
        for step in range(3):
            model.zero_grad()
            model(fed[step * 8 + 4 * rank :][:4]).square().sum().backward()
            assert module.weight.grad is not None
            means.append(module.weight.grad.clone())
        return means
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def same_under_all(rank: int, world_size: int) -> list[str]:
    fed = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    different = []
    for way in WAYS:
        for wire in ("rice+bf16-rice", "raw+fp32"):
            wanted = steps(rank, torch.float32, fed, way, wire)
            for default in (torch.bfloat16, torch.float16, torch.float64, "meta"):
                found = steps(rank, default, fed, way, wire)
                if not all(map(torch.equal, found, wanted)) and not way.startswith(
                    "auto"
                ):  # which may choose otherwise
                    different.append(f"{way}, {wire}, {default}")
    return different


def test_a_step_is_the_same_under_any_default(two_workers: Workers) -> None:
    assert two_workers.run(same_under_all) == [[], []]
