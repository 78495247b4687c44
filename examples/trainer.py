"""Train a small GPT-2 with Transformers' Trainer, compressed by the recipe for a transformer with AdamW.

    torchrun --nproc-per-node 2 examples/trainer.py                        # saves a checkpoint every 20 of 60 steps
    torchrun --nproc-per-node 2 examples/trainer.py --steps 80 --resume    # goes on from the last one

Resumed after its last step, a Trainer takes one more: transformers 5.24 does so without compression as well.

The model is built from a config, and the text is Python's own standard library, byte by byte: nothing is downloaded.
What differs from a plain Trainer with AdamW is marked with a star.
"""

from __future__ import annotations

import argparse
import tempfile
import typing
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from gaussiank import AdamRows  # *
from gaussiank.integrations.transformers import compress  # *

CONTEXT = 32


def examples() -> list[dict[str, torch.Tensor]]:
    """Return pieces of a text, byte by byte."""
    text = torch.frombuffer(bytearray(Path(typing.__file__).read_bytes()), dtype=torch.uint8).long()
    pieces = text[: len(text) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def prepared(folder: str, steps: int, save_every: int = 20, **compression: Any) -> tuple[Trainer, Any]:
    """Return a trainer that saves to a folder, and the callback that compresses it."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2))
    arguments = TrainingArguments(
        folder,
        use_cpu=True,
        max_steps=steps,
        save_steps=save_every,
        logging_steps=10,
        per_device_train_batch_size=8,
        optim="sgd",  # * AdamRows divides the gradients before they are selected; AdamW would do so twice
        learning_rate=0.003,
        weight_decay=0.01,
        warmup_steps=5,
        ddp_find_unused_parameters=False,
        max_grad_norm=0,  # * in its place: clip_norm, which cuts each worker's own gradient
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=examples())
    recipe = {"precondition": AdamRows(), "scope": "layer", "clip_norm": 0.5}
    return trainer, compress(trainer, 1 / 16, **{**recipe, **compression})  # *


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(Path(tempfile.gettempdir(), "gaussiank-trainer")))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    trainer, callback = prepared(given.out, given.steps)
    trainer.train(resume_from_checkpoint=given.resume)
    if trainer.is_world_process_zero():
        print(callback.compression.summary())


if __name__ == "__main__":
    main()
