"""How much of what workers select is the same? The union of their selections over k, by number of workers.

One process plays all workers in turn, each with its own share of the data and its own residual; the model steps by the
mean, as in training. One line of JSON for each density and number of workers, averaged over the second half.

    python benchmarks/selection_overlap.py --model lenet5 --steps 120
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import torch

from gaussiank import ops
from gaussiank_lab.data import Batch, Batches, Data
from gaussiank_lab.train.config import TrainConfig

WORKERS = (2, 4, 8, 16)
DENSITIES = (0.01, 0.001)


def shares(data: Data, batch_size: int, rank: int) -> Iterator[Batch]:
    batches, epoch = Batches(data.train, batch_size, rank=rank, world_size=WORKERS[-1], seed=0), 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def unions(model_name: str, density: float, steps: int, batch_size: int) -> list[list[float]]:
    """Train, and return union over k for each step of the second half and each number of workers."""
    config = TrainConfig(model=model_name)
    data = config.load_data()
    torch.manual_seed(0)
    model = config.spec.build(data.outputs)
    parameters = list(model.parameters())
    numel = sum(parameter.numel() for parameter in parameters)
    k = max(1, round(density * numel))
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    residuals = [torch.zeros(numel) for _ in range(WORKERS[-1])]
    parts = [shares(data, batch_size, rank) for rank in range(WORKERS[-1])]
    rows = []
    for step in range(steps):
        mean, selections = torch.zeros(numel), []
        for residual, batches in zip(residuals, parts, strict=True):
            batch = next(batches)
            model.zero_grad()
            data.task.loss(model(*data.train.prepare(batch.inputs)), batch.targets).backward()
            residual.add_(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
            chosen = ops.select_topk(residual, k).long()
            mean[chosen] += residual[chosen] / WORKERS[-1]
            residual[chosen] = 0
            selections.append(chosen)
        for parameter, grad in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = grad.view_as(parameter)
        optimizer.step()
        if step >= steps // 2:
            rows.append([len(torch.unique(torch.cat(selections[:count]))) / k for count in WORKERS])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    for density in DENSITIES:
        rows = unions(arguments.model, density, arguments.steps, arguments.batch_size)
        for count, *values in zip(WORKERS, *rows, strict=True):
            row: dict[str, Any] = {"question": "selection overlap", "model": arguments.model, "density": density}
            print(json.dumps({**row, "workers": count, "union_over_k": round(sum(values) / len(values), 3)}))


if __name__ == "__main__":
    main()
