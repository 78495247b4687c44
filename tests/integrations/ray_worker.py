"""Run by test_ray.py: the recipe of docs/frameworks.md in the real Ray Train, whole, and with a worker killed."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor, nn

folder, recipe = sys.argv[1:]
names: dict[str, Any] = {}
exec(recipe, names)


def model() -> nn.Module:
    """Return a small model, the same on every worker."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3))


def whole(wrapped: nn.Module, step: int, rank: int) -> Tensor:
    """Return the loss on a batch of a step and a worker."""
    inputs = torch.randn(16, 20, generator=torch.Generator().manual_seed(2 * step + rank))
    return nn.functional.cross_entropy(wrapped(inputs), inputs[:, :3].argmax(dim=1))


def killed(wrapped: nn.Module, step: int, rank: int) -> Tensor:
    """End a worker in the middle of the run, the first time."""
    once = Path(folder, "killed")
    if rank == 1 and step == 7 and not once.exists():
        once.touch()
        os._exit(1)
    return whole(wrapped, step, rank)


ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
found = {}
for name, loss in (("whole", whole), ("killed", killed)):
    Path(folder, name).mkdir()
    given = {"folder": f"{folder}/{name}", "model": model, "loss": loss, "steps": 10, "save_every": 5}
    TorchTrainer(
        names["train_loop"],
        train_loop_config=given,
        scaling_config=ScalingConfig(num_workers=2),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(storage_path=f"{folder}/ray", failure_config=FailureConfig(max_failures=1)),
    ).fit()
    last = torch.load(f"{folder}/{name}/last.pt")
    found[name] = {key: tensor.tolist() for key, tensor in last["model"].items()}
    states = [torch.load(one) for one in sorted(Path(folder, name, "residuals-10").glob("*.pt"))]
    found[f"{name} waits"] = sum(
        float(held.abs().sum()) for one in states for held in one["feedback"]["residual"].values()
    )
found["was killed"] = Path(folder, "killed").exists()
Path(folder, "found.json").write_text(json.dumps(found))
