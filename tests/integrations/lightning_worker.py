"""Run by test_lightning.py in each of two processes, with the real Lightning."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from tests.integrations.found import added, differing, example, said, write

folder, rank = sys.argv[1], int(os.environ["RANK"])
fit = example("lightning_fit")
found = {}


def trained(place, steps, ckpt_path=None, **settings):
    torch.manual_seed(0)
    model = fit.Transformer()
    trainer, callback = fit.prepared(f"{folder}/{place}", steps, 3, **settings)
    trainer.fit(model, fit.DataLoader(fit.Batches(model), batch_size=None), ckpt_path=ckpt_path)
    return model, callback


plain = {"precondition": None, "scope": "bucket"}  # k is counted on DDP's buckets
for name, settings in (("recipe", {}), ("buckets", plain)):
    whole, callback = trained(name, 6, **settings)
    resumed, again = trained(f"{name}-resumed", 6, f"{folder}/{name}/step=3.ckpt", **settings)
    found[name] = {
        "differing": differing(whole, callback.compression, resumed, again.compression),
        "calls": [callback.compression.step, again.compression.step],
        "kept": callback.compression.metrics.kept,
        "numel": callback.compression.metrics.numel,
    }
found["text"] = repr(callback)
found["beside"] = sorted(path.name for path in Path(folder, "recipe", "gaussiank").iterdir())

# the lines of the page, with a logger, and checkpoints of which the last one alone is kept
torch.manual_seed(0)
checkpoints = fit.ModelCheckpoint(f"{folder}/kept", filename="{step}", every_n_train_steps=2)
common = {"accelerator": "cpu", "strategy": "ddp", "devices": 2, "max_steps": 6, "log_every_n_steps": 1,
          "enable_progress_bar": False, "enable_model_summary": False}  # fmt: skip
trainer = Trainer(**common, callbacks=[checkpoints], logger=CSVLogger(folder, "logs", "one"))
added(trainer=trainer)
fresh = fit.Transformer()
trainer.fit(fresh, fit.DataLoader(fit.Batches(fresh), batch_size=None))
dist.barrier()  # rank 0 removes
found["kept"] = [
    sorted(path.name for path in Path(folder, *parts).iterdir()) for parts in (("kept",), ("kept", "gaussiank"))
]
trainer.save_checkpoint(f"{folder}/weights/only.ckpt", weights_only=True)
dist.barrier()
found["weights only"] = sorted(path.name for path in Path(folder, "weights").iterdir())
found["logged"] = Path(folder, "logs", "one", "metrics.csv").read_text().partition("\n")[0].split(",")

Callback = fit.CompressionCallback
two = Trainer(**common, callbacks=[Callback()], logger=False)
two.callbacks.append(Callback())  # in the constructor, Lightning itself refuses it
found["twice"] = said(lambda: two.fit(fresh, fit.DataLoader(fit.Batches(fresh), batch_size=None)))
found["one process"] = said(lambda: Callback().setup(SimpleNamespace(world_size=1), None, "fit"))
dist.barrier()
if rank == 0:
    shutil.copytree(
        f"{folder}/recipe/gaussiank/step=6.ckpt", f"{folder}/recipe/gaussiank/step=3.ckpt", dirs_exist_ok=True
    )
dist.barrier()
found["another step"] = said(lambda: trained("other", 8, f"{folder}/recipe/step=3.ckpt"))
dist.barrier()
if rank == 0:
    shutil.rmtree(f"{folder}/recipe/gaussiank")
dist.barrier()
found["without residuals"] = said(lambda: trained("other", 4, f"{folder}/recipe/step=3.ckpt"))
write(folder, rank, **found)
dist.destroy_process_group()
