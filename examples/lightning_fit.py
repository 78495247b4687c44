"""Train a small transformer with Lightning on CPUs, compressed by the recipe for a transformer with AdamW.

    torchrun --nproc-per-node 2 examples/lightning_fit.py                        # saves every 20 of 60 steps
    torchrun --nproc-per-node 2 examples/lightning_fit.py --steps 80 --resume    # goes on from the last one

The text is Python's own standard library, byte by byte. What differs from a plain run with AdamW is marked with a star.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from gaussiank import AdamRows  # *
from gaussiank.integrations.lightning import CompressionCallback  # *

WIDTH, CONTEXT = 32, 32


class Transformer(LightningModule):
    """Predict the next byte."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 256)

    def training_step(self, text: Tensor) -> Tensor:
        """Return the mean loss of ``[batch, CONTEXT + 1]`` bytes."""
        hidden = self.bytes(text[:, :-1]) + self.places.weight
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        for block in self.blocks:
            hidden = block(hidden, mask, is_causal=True)
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), text[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.003, weight_decay=0.01)  # * AdamW's division comes before


class Batches(IterableDataset[Tensor]):
    """Batches of a text from the step on at which a run stands; of itself, Lightning resumes with the first again."""

    def __init__(self, model: LightningModule, batch_size: int = 8) -> None:
        text = torch.frombuffer(bytearray(Path(typing.__file__).read_bytes()), dtype=torch.uint8).long()
        self._pieces = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
        self._model, self._size = model, batch_size

    def __iter__(self) -> Iterator[Tensor]:
        """Yield ``[batch, CONTEXT + 1]`` bytes, others on each worker."""
        trainer = self._model.trainer
        batches = self._pieces.split(self._size)[:-1]
        for step in itertools.count(trainer.global_step):
            yield batches[(step * trainer.world_size + trainer.global_rank) % len(batches)]


def prepared(folder: str, steps: int, save_every: int = 20, **settings: Any) -> tuple[Trainer, CompressionCallback]:
    """Return a trainer that saves to a folder, and the callback that compresses its model."""
    recipe = {"precondition": AdamRows(), "scope": "layer", "clip_norm": 0.5}
    compression = CompressionCallback(1 / 16, **{**recipe, **settings})  # *
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=save_every, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_steps=steps,
        callbacks=[checkpoints, compression],  # *
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer, compression


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(Path(tempfile.gettempdir(), "gaussiank-lightning")))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    trainer, callback = prepared(given.out, given.steps)
    saved = sorted(Path(given.out).glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    model = Transformer()
    loader = DataLoader(Batches(model), batch_size=None)
    trainer.fit(model, loader, ckpt_path=saved[-1] if given.resume and saved else None)
    if trainer.is_global_zero and callback.compression:
        print(callback.compression.summary())


if __name__ == "__main__":
    main()
