"""Train a small transformer as AdamW does, with sparse exchanges: divided by rows before the selection, SGD after it.

    torchrun --nproc-per-node 2 examples/adamw.py
    torchrun --nproc-per-node 2 examples/adamw.py --dense     # torch's AdamW, dense, to compare

The text is Python's own standard library, byte by byte. What differs is marked with a star; docs/adamw.md says why.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank  # *

WIDTH, HEADS, BLOCKS, CONTEXT, BATCH = 128, 4, 2, 32, 8


class Transformer(nn.Module):
    """Predict the next byte; returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(BLOCKS)
        )
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, text: Tensor, following: Tensor) -> Tensor:
        """Return the mean loss, in nats a byte, for bytes ``[batch, CONTEXT]`` and those that follow each."""
        hidden = self.bytes(text) + self.places(torch.arange(CONTEXT))
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        return nn.functional.cross_entropy(self.head(self.norm(hidden)).flatten(0, 1), following.flatten())


def corpus() -> Tensor:
    """Return the bytes of the standard library's modules."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in files)), dtype=torch.uint8).long()


def main() -> None:
    """Train, and say what was sent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", action="store_true", help="torch's AdamW on dense gradients")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=0.003)
    chosen = parser.parse_args()

    dist.init_process_group("gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(Transformer())
    optimizer: torch.optim.Optimizer
    if chosen.dense:
        compression = gaussiank.compress(model, 1.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=chosen.lr, weight_decay=0.1)
    else:
        compression = gaussiank.compress(  # * for so few steps 1/64; docs/adamw.md has other densities
            model, 1 / 64, scope="layer", clip_norm=1.0, wire="rice+2bit", precondition=gaussiank.AdamRows()
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=chosen.lr, weight_decay=0.1)  # * with AdamW's decay
    warm = max(1, chosen.steps // 20)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / chosen.steps))
    )

    text, draw = corpus(), torch.Generator().manual_seed(rank)
    sent_bytes = dense_bytes = 0
    recent: list[float] = []
    for step in range(chosen.steps):
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH,), generator=draw)
        batch = torch.stack([text[start : start + CONTEXT + 1] for start in starts])
        optimizer.zero_grad()
        loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        if chosen.dense:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        sent_bytes += compression.metrics.sent_bytes
        dense_bytes += compression.metrics.dense_bytes
        recent = [*recent[-49:], float(loss.detach())]
        if step % 100 == 99 or step == chosen.steps - 1:
            mean = torch.tensor(sum(recent) / len(recent) / workers)
            dist.all_reduce(mean)
            if rank == 0:
                print(f"step {step + 1}: {float(mean):.3f} nats a byte, mean of the last {len(recent)}", flush=True)
    if rank == 0:
        print(f"sent {sent_bytes / 1e6:.2f} MB a worker, dense {dense_bytes / 1e6:.2f} MB")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
