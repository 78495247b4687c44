"""The lines that docs/frameworks.md adds to nanoGPT's ``train.py``, in a loop of its form."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
ITERATIONS, SAVED, MICRO_STEPS = 6, 3, 3


def added() -> str:
    section = PAGE.read_text(encoding="utf-8").split("\n## nanoGPT\n")[1]
    found = re.search(r"```diff\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return "\n".join(line[2:] for line in found[1].splitlines())


def trained(rank: int, world_size: int, folder: str, init_from: str) -> Tensor:
    """Train as nanoGPT does: it accumulates by a field of DDP; rank 0 saves the model, every worker its residuals."""
    torch.manual_seed(0)
    raw = nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 12))
    decayed, others = ([one for one in raw.parameters() if (one.dim() > 1) == matrices] for matrices in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    found: dict[str, Any] = {
        "torch": torch, "os": os, "init_from": init_from, "out_dir": folder, "learning_rate": 0.01,
        "optimizer": torch.optim.AdamW(groups, lr=0.01), "scaler": torch.amp.GradScaler("cpu", enabled=False),
    }  # fmt: skip
    first = 0
    if init_from == "resume":
        saved = torch.load(f"{folder}/ckpt.pt")
        raw.load_state_dict(saved["model"])
        found["optimizer"].load_state_dict(saved["optimizer"])
        first = saved["iter_num"]
    found["model"] = model = DistributedDataParallel(raw)
    exec(added(), found)
    optimizer, compression = found["optimizer"], found["compression"]
    for iteration in range(first, ITERATIONS):
        if iteration == SAVED and init_from == "scratch":
            compression.save(f"{folder}/residuals")
            if rank == 0:
                state = {"model": raw.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": iteration}
                torch.save(state, f"{folder}/ckpt.pt")
        for micro_step in range(MICRO_STEPS):
            model.require_backward_grad_sync = micro_step == MICRO_STEPS - 1
            seed = (iteration * MICRO_STEPS + micro_step) * world_size + rank
            tokens = torch.randint(12, (8, 5), generator=torch.Generator().manual_seed(seed))
            (nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()) / MICRO_STEPS).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert compression.step == ITERATIONS
    residuals = compression.state_dict()["feedback"]["residual"].values()
    return torch.cat([one.detach().flatten() for one in (*raw.parameters(), *residuals)])


def test_its_loop_trains_and_resumes_to_the_bit(two_workers: Any, tmp_path: Path) -> None:
    whole = two_workers.run(trained, str(tmp_path), "scratch")
    assert not torch.equal(whole[0], whole[1])  # residuals
    for one, again in zip(whole, two_workers.run(trained, str(tmp_path), "resume"), strict=True):
        assert torch.equal(one, again)
