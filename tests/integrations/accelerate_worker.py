"""Run by test_accelerate.py in each of two processes, with the real Accelerate."""

from __future__ import annotations

import os
import shutil
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate import Accelerator
from tests.integrations.found import added, differing, example, said, write
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gaussiank

folder, rank = sys.argv[1], int(os.environ["RANK"])
loop = example("accelerate_loop")
found = {}
plain = {"precondition": None, "scope": "bucket"}  # k is counted on DDP's buckets
for name, settings in (("recipe", {}), ("buckets", plain)):
    whole, compression = loop.train(f"{folder}/{name}", 6, 3, **settings)
    resumed, again = loop.train(f"{folder}/{name}", 6, 3, resume=True, **settings)
    found[name] = {
        "differing": differing(whole, compression, resumed, again),
        "calls": [compression.step, again.step],
        "kept": compression.metrics.kept,
        "numel": compression.metrics.numel,
    }

accelerator = Accelerator(cpu=True)
found["unprepared"] = said(lambda: loop.compress(accelerator, torch.nn.Linear(3, 3)))
found["one process"] = said(lambda: loop.compress(SimpleNamespace(num_processes=1), whole))
model = accelerator.prepare(torch.nn.Linear(30, 30))
compression = added(accelerator=accelerator, model=model)["compression"]
found["twice"] = said(lambda: loop.compress(accelerator, model))
second = accelerator.prepare(torch.nn.Linear(3, 3))
loop.compress(accelerator, second, 0.1)  # as a GAN has
accelerator.save_state(f"{folder}/two")
found["folders"] = sorted(os.listdir(f"{folder}/two"))  # noqa: PTH208  names alone
dist.barrier()
if rank == 0:
    shutil.rmtree(f"{folder}/two/gaussiank")
dist.barrier()
found["without residuals"] = said(lambda: accelerator.load_state(f"{folder}/two"))

# FSDP2: sharded by hand, and not prepared
mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
sharded = torch.nn.Linear(30, 30)
fully_shard(sharded, mesh=mesh["shard"])
alone = Accelerator(cpu=True)
compression = loop.compress(alone, sharded, 0.1, mesh=mesh)
sharded(torch.full((2, 30), 1.0 + rank)).square().mean().backward()
alone.save_state(f"{folder}/sharded")
before = compression.state_dict()["feedback"]["residual"]
sharded(torch.full((2, 30), 1.0 + rank)).square().mean().backward()
alone.load_state(f"{folder}/sharded")
after = compression.state_dict()["feedback"]["residual"]
found["sharded"] = [compression.step, all(torch.equal(before[name], after[name]) for name in before | after)]

# LocalSteps: the model is placed, and not wrapped
local_model = accelerator.prepare_model(torch.nn.Linear(30, 30), evaluation_mode=True)
optimizer = torch.optim.SGD(local_model.parameters(), lr=0.1)
local = gaussiank.LocalSteps(local_model, optimizer, sync_every=2)
for step in range(4):
    optimizer.zero_grad()
    local_model(torch.full((2, 30), 1.0 + rank + step)).square().mean().backward()
    optimizer.step()
    local.step()
local.finish()
weights = [torch.zeros_like(local_model.weight) for _ in range(2)]
dist.all_gather(weights, local_model.weight.detach())
found["local steps agree"] = bool(torch.equal(*weights))
write(folder, rank, **found)
dist.destroy_process_group()
