"""Train a small transformer with Accelerate, compressed by the recipe for a transformer with AdamW.

    torchrun --nproc-per-node 2 examples/accelerate_loop.py              # saves a state after 20 steps
    torchrun --nproc-per-node 2 examples/accelerate_loop.py --resume     # goes on from there, with the same bits

The text is Python's own standard library, byte by byte. What differs from a plain loop with AdamW has a star.
"""

from __future__ import annotations

import argparse
import tempfile
import typing
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gaussiank import AdamRows  # *
from gaussiank.integrations.accelerate import compress  # *

WIDTH, CONTEXT = 32, 32


class Transformer(nn.Module):
    """Predict the next byte; returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, text: Tensor) -> Tensor:
        """Return the mean loss of ``[batch, CONTEXT + 1]`` bytes."""
        hidden = self.bytes(text[:, :-1]) + self.places.weight
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        for block in self.blocks:
            hidden = block(hidden, mask, is_causal=True)
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), text[:, 1:].flatten())


def loaded(seed: int = 0) -> DataLoader[Tensor]:
    """Return pieces of a text, byte by byte, in batches."""
    text = torch.frombuffer(bytearray(Path(typing.__file__).read_bytes()), dtype=torch.uint8).long()
    pieces = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    return DataLoader(pieces, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(seed))


def train(folder: str, steps: int, save_at: int, resume: bool = False, **settings: Any) -> tuple[nn.Module, Any]:
    """Train, and save a state at a step; or go on from there."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = Transformer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, weight_decay=0.01)  # * AdamW's division comes before
    model, optimizer, loader = accelerator.prepare(model, optimizer, loaded())
    recipe = {"precondition": AdamRows(), "scope": "layer", "clip_norm": 0.5, "total_steps": steps}
    compression = compress(accelerator, model, 1 / 16, **{**recipe, **settings})  # *
    if resume:
        accelerator.load_state(folder)
        loader = accelerator.skip_first_batches(loader, save_at)
    for step, batch in enumerate(loader, save_at * resume):
        if step == steps:
            break
        optimizer.zero_grad()
        accelerator.backward(model(batch))
        optimizer.step()
        if step + 1 == save_at:
            accelerator.save_state(folder)
    return model, compression


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(Path(tempfile.gettempdir(), "gaussiank-accelerate")))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    _, compression = train(given.out, given.steps, 20, given.resume)
    if Accelerator().is_main_process:
        print(compression.summary())


if __name__ == "__main__":
    main()
