"""Train a small transformer with FSDP2: sharded over the workers of a node, sparse between nodes.

Here two "nodes" of two workers stand on one machine; on a cluster, torchrun's --nproc-per-node is the number of shards:

    torchrun --nproc-per-node 4 examples/fsdp2_hsdp.py --shards 2
    torchrun --nproc-per-node 4 examples/fsdp2_hsdp.py --shards 2 --density 1     # all is sent between nodes

Density 1 is no baseline for accuracy: AdamRows gets worse above 1/64. Compare with torch's AdamW in plain HSDP.
The text is Python's own standard library, byte by byte. What differs from plain FSDP2 is marked with a star.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gaussiank  # *

WIDTH, HEADS, BLOCKS, CONTEXT = 128, 4, 2, 64


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
        hidden = self.bytes(text) + self.places(torch.arange(CONTEXT, device=text.device))
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT, device=text.device)
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
    parser.add_argument("--shards", type=int, default=2, help="workers of a node, that share one copy of the model")
    parser.add_argument("--density", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=1e-3)
    chosen = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh(device, (workers // chosen.shards, chosen.shards), mesh_dim_names=("replicate", "shard"))

    torch.manual_seed(0)
    model = Transformer().to(device)
    for block in model.blocks:
        fully_shard(block, mesh=mesh["shard"])  # * mesh alone, in plain HSDP
    fully_shard(model, mesh=mesh["shard"])  # *
    compression = gaussiank.compress(  # * clips, and divides as AdamW does, before anything is selected
        model, chosen.density, mesh=mesh, scope="layer", clip_norm=1.0, precondition=gaussiank.AdamRows()
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=chosen.lr, weight_decay=0.1)  # * AdamW, in plain HSDP

    text, draw = corpus(), torch.Generator().manual_seed(rank)
    sent_bytes = dense_bytes = 0
    for step in range(chosen.steps):
        starts = torch.randint(len(text) - CONTEXT - 1, (16,), generator=draw)
        batch = torch.stack([text[start : start + CONTEXT + 1] for start in starts]).to(device)
        optimizer.zero_grad()
        loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        optimizer.step()
        sent_bytes += compression.metrics.sent_bytes
        dense_bytes += compression.metrics.dense_bytes
        if step % 50 == 49:
            mean = loss.detach() / workers
            dist.all_reduce(mean)
            if rank == 0:
                print(f"step {step + 1}: {float(mean):.3f} nats", flush=True)
    if rank == 0:
        print(f"{compression.metrics.calls} modules a step; between nodes {sent_bytes / 1e6:.2f} MB a worker, "
              f"dense {dense_bytes / 1e6:.2f} MB")  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
