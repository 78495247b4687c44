"""Make the real vector that ``gaussiank bench ops`` selects from: an accumulated gradient out of a training run.

Trains FNN-3 (199,210 parameters) on the package's images with Top_k at density 0.001 and error feedback, one worker,
and keeps what Top_k sees at the last step: residual plus gradient, float32, in parameter order. The same torch on the
same processor gives the same bytes.

    python scripts/make_residual_sample.py [--steps 400] [--out FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import gaussiank
from gaussiank import ops
from gaussiank.compressors import SelectContext, Selection, Taken, TopK, finish_take
from gaussiank_lab.data import Batches
from gaussiank_lab.train.config import TrainConfig

OUT = Path(__file__).parent.parent / "lab/gaussiank_lab/bench/residual.npz"
SEED = 19110877


@dataclass(frozen=True)
class WatchedTopK(TopK):
    """Top_k that keeps a copy of the last vector it was given."""

    seen: list[Tensor] = field(default_factory=list, compare=False)

    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        """Choose the k largest, and remember the vector."""
        self.seen[:] = [accumulated.clone()]
        return super().select(accumulated, k, turn)

    def take(self, grad: Tensor, residual: Tensor, out: Tensor, k: int, turn: SelectContext | None = None) -> Taken:
        """Add first, so that there is a vector to copy."""
        ops.accumulate(residual, grad, out=out)
        return finish_take(self, out, k, turn, finite=True)


def train(steps: int) -> Tensor:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    config, watched = TrainConfig(model="fnn3"), WatchedTopK()
    data = config.load_data()
    model = DistributedDataParallel(config.spec.build(data.outputs))
    gaussiank.compress(model, 0.001, compressor=watched, scope="model")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    batches = Batches(data.train, 128, rank=0, world_size=1, seed=SEED)
    step = epoch = 0
    while step < steps:
        for batch in batches.epoch(epoch):
            loss = data.task.loss(model(*data.train.prepare(batch.inputs)), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == steps:
                break
        epoch += 1
    print(f"loss {loss.item():.4f} after {steps} steps")
    return watched.seen[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps before the vector is taken")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=0, world_size=1)
        vector = train(arguments.steps)
        dist.destroy_process_group()
    np.savez_compressed(arguments.out, accumulated=vector.numpy())
    magnitude = vector.abs().double()
    kurtosis = float(((vector.double() - vector.double().mean()) / vector.double().std()).pow(4).mean())
    print(f"{vector.numel()} entries, {int((magnitude == 0).sum())} of them zero, kurtosis {kurtosis:.2f}")
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
