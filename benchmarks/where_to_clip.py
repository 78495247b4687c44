"""Where should a gradient be clipped that travels sparse: on each worker, or the mean; and may what is cut come back?

Workers are simulated in one process, with a Top_k over the whole model. ``local`` clips each worker's gradient before
the selection, ``after`` the mean, as ``clip_grad_norm_`` does; ``return`` also puts what it cut back into the residuals
of those who sent it. Rows in long form; the residual's norm stands there eight times.

    python benchmarks/where_to_clip.py --model transformer --optimizer adamw --beta1 0 --lr 0.002 --clip 0.5
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gaussiank_lab.data import DATASETS, Batches, Wanted
from gaussiank_lab.models import MODELS

WAYS = ("none", "local", "after", "return")


class Workers:
    """Simulated workers: one model, a stream of batches and a residual for each of them."""

    def __init__(self, model: str, world_size: int) -> None:
        torch.manual_seed(0)
        spec = MODELS[model]
        text = spec.task == "language"
        self.data = DATASETS["stdlib" if text else "fashion-mnist-subset"].load(Wanted(image=spec.image))
        self.model = spec.build(self.data.outputs)
        self.parameters = list(self.model.parameters())
        self.numel = sum(parameter.numel() for parameter in self.parameters)
        self.residuals = [torch.zeros(self.numel) for _ in range(world_size)]
        self._streams = [self._stream(rank, world_size, 4 if text else 32) for rank in range(world_size)]

    def _stream(self, rank: int, world_size: int, batch_size: int) -> Iterator[Any]:
        epoch = 0
        while True:
            yield from Batches(self.data.train, batch_size, rank=rank, world_size=world_size, seed=0).epoch(epoch)
            epoch += 1

    def gradient(self, rank: int) -> Tensor:
        """Return ``[numel]``, of this worker's next batch."""
        batch = next(self._streams[rank])
        self.model.zero_grad()
        self.data.task.loss(self.model(*self.data.train.prepare(batch.inputs)), batch.targets).backward()
        return torch.cat([one.grad.flatten() for one in self.parameters if one.grad is not None])

    def hand_out(self, mean: Tensor) -> None:
        """Give every parameter its part."""
        for parameter, part in zip(self.parameters, mean.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def evaluate(self) -> dict[str, float]:
        """Return loss and metric over 1,600 examples of the test set."""
        self.model.eval()
        sums, size = torch.zeros(4, dtype=torch.float64), min(len(self.data.test), 1600)
        with torch.no_grad():
            for start in range(0, size, 32):
                batch = self.data.test.batch(torch.arange(start, min(start + 32, size)))
                output = self.model(*self.data.test.prepare(batch.inputs))
                sums += self.data.task.score(output, batch.targets)
        return self.data.task.evaluation(sums)


def train(way: str, asked: argparse.Namespace) -> dict[str, Any]:
    workers = Workers(asked.model, asked.workers)
    k = max(1, round(asked.density * workers.numel))
    if asked.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(workers.parameters, asked.lr)
    else:
        optimizer = torch.optim.AdamW(workers.parameters, asked.lr, betas=(asked.beta1, 0.999))
    warmup, norms = max(1, asked.steps // 10), []
    for step in range(asked.steps):
        turn = max(0, step - warmup) / (asked.steps - warmup)
        for group in optimizer.param_groups:
            group["lr"] = asked.lr * min(1, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * turn))
        mean, sent = torch.zeros(workers.numel), []
        for rank, residual in enumerate(workers.residuals):
            grad = workers.gradient(rank)
            if way == "local":
                grad *= min(1.0, asked.clip / float(grad.norm() + 1e-12))
            residual.add_(grad)
            indices = residual.abs().topk(k, sorted=False).indices
            sent.append((indices, residual[indices]))
            residual[indices] = 0
            mean.index_add_(0, indices, sent[-1][1] / asked.workers)
        if way in ("after", "return") and (norm := float(mean.norm())) > asked.clip:
            mean *= asked.clip / norm
            if way == "return":
                for kept, (places, values) in zip(workers.residuals, sent, strict=True):
                    kept.index_add_(0, places, values, alpha=1 - asked.clip / norm)
        workers.hand_out(mean)
        optimizer.step()
        norms.append(float(torch.stack(workers.residuals).norm()))
    eighth = max(1, asked.steps // 8)
    residual_norms = [round(one, 2) for one in norms[eighth - 1 :: eighth]]
    return {**vars(asked), "way": way, **workers.evaluate(), "residual": residual_norms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="transformer")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--beta1", type=float, default=0.0, help="of adamw")
    parser.add_argument("--lr", type=float, default=1.0)
    parser.add_argument("--clip", type=float, default=0.5, help="largest norm")
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    asked = parser.parse_args()
    for way in WAYS:
        print(json.dumps(train(way, asked)), flush=True)


if __name__ == "__main__":
    main()
