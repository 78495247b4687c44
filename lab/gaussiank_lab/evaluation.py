"""Judge a model by the test set, each worker on its share of it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from gaussiank_lab.data import Data
from gaussiank_lab.precision import Precision


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Data, batch_size: int, device: torch.device, precision: Precision
) -> dict[str, float]:
    """Return loss and metric over the whole test set, the same on every worker; within a process group.

    Args:
        model: made to run as in use, and put back to training. Buffers become those of rank 0, as in DDP.
        data: whose test set is taken.
        batch_size: examples that the model is given at once.
        device: of the model.
        precision: that the model computes in.
    """
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)  # running statistics differ between workers
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(dist.get_rank() * batch_size, len(data.test), batch_size * dist.get_world_size()):
        chosen = torch.arange(start, min(start + batch_size, len(data.test)))
        batch = data.test.batch(chosen).to(device)
        sums += data.task.score(precision.run(model, data.test.prepare(batch.inputs)), batch.targets)
    dist.all_reduce(sums)
    model.train()
    return data.task.evaluation(sums)
