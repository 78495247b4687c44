"""Run by test_transformers.py in each of two processes, with the real Trainer."""

from __future__ import annotations

import os
import shutil
import sys
from types import SimpleNamespace

import torch.distributed as dist
from tests.integrations.found import added, differing, example, said, write

folder, rank = sys.argv[1], int(os.environ["RANK"])
trainer_example = example("trainer")
found = {}
plain = {"precondition": None, "scope": "bucket"}  # k is counted on DDP's buckets
for name, settings in (("recipe", {}), ("buckets", plain)):
    whole, callback = trainer_example.prepared(f"{folder}/{name}", 6, save_every=3, **settings)
    whole.train()
    resumed, again = trainer_example.prepared(f"{folder}/{name}-resumed", 6, save_every=3, **settings)
    resumed.train(resume_from_checkpoint=f"{folder}/{name}/checkpoint-3")
    found[name] = {
        "differing": differing(whole.model, callback.compression, resumed.model, again.compression),
        "calls": [callback.compression.step, again.compression.step],
        "kept": callback.compression.metrics.kept,
        "numel": callback.compression.metrics.numel,
    }

whole, callback = trainer_example.prepared(f"{folder}/logs", 2)
whole.args.logging_steps = whole.state.logging_steps = 1
whole.train()
found["logged"] = sorted(key for key in whole.state.log_history[0] if key.startswith("gaussiank/"))
found["text"] = [repr(callback), callback.compression.summary()]

compress = trainer_example.compress
found["twice"] = said(lambda: compress(whole))
found["one process"] = said(lambda: compress(SimpleNamespace(args=SimpleNamespace(world_size=1))))
dist.barrier()
if rank == 0:
    shutil.rmtree(f"{folder}/recipe/checkpoint-3/gaussiank")
dist.barrier()
other, _ = trainer_example.prepared(f"{folder}/other", 4)
found["without residuals"] = said(lambda: other.train(resume_from_checkpoint=f"{folder}/recipe/checkpoint-3"))

bare = trainer_example.Trainer(whole.model, whole.args, train_dataset=trainer_example.examples())
bare.args.max_grad_norm = 1.0
found["clips"] = said(lambda: added(trainer=bare))
fresh = trainer_example.GPT2LMHeadModel(whole.model.config)
bare = trainer_example.Trainer(fresh, whole.args, train_dataset=trainer_example.examples())
bare.args.optim = "adamw_torch"  # as a Trainer is by default
found["defaults"] = said(lambda: added(trainer=bare))
bare.args.output_dir, bare.args.max_steps = f"{folder}/bare", 2
found["short"] = said(bare.train)  # at density 0.01
write(folder, rank, **found)
dist.destroy_process_group()
