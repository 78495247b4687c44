"""Which examples each worker sees at which step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.utils.data import Dataset, DistributedSampler

from gaussiank_lab.data.split import Batch, Split


class Batches:
    """Deal the examples to workers anew each epoch; the order depends on seed and epoch alone.

    Every worker gets as many batches, of different examples; what does not fill a batch is left out of the epoch. What
    augmentation does depends on seed, epoch, step and rank alone.

    Args:
        data: examples to deal.
        batch_size: examples for each worker and step.
        rank: this worker.
        world_size: number of workers.
        seed: number that the order starts from.
        augment: change images at random as they are dealt.

    Raises:
        ValueError: too few examples for one batch on every worker, or a rank that is none of theirs.
    """

    def __init__(
        self, data: Split, batch_size: int, *, rank: int, world_size: int, seed: int, augment: bool = False
    ) -> None:
        if not 1 <= world_size <= len(data):
            raise ValueError(
                f"world_size must be in [1, {len(data)}] for {len(data)} {data.unit}, got {world_size}. "
                "Start as many workers."
            )
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank must be in [0, {world_size - 1}] on {world_size} workers, got {rank}. Give this worker's own."
            )
        if not 1 <= batch_size <= len(data) // world_size:
            raise ValueError(
                f"batch_size must be in [1, {len(data) // world_size}] for {len(data)} {data.unit} on {world_size} "
                f"workers, got {batch_size}. Choose one that fits."
            )
        self._data = data
        self._batch_size = batch_size
        self._seed, self._rank, self._augment = seed, rank, augment
        self._sampler: DistributedSampler[Any] = DistributedSampler(
            cast("Dataset[Any]", data), world_size, rank, shuffle=True, seed=seed, drop_last=True
        )

    def __len__(self) -> int:
        """Return the steps in an epoch."""
        return len(self._sampler) // self._batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number ``start`` on."""
        self._sampler.set_epoch(epoch)
        order = torch.tensor(list(self._sampler))
        for step in range(start, len(self)):
            chosen = order[step * self._batch_size : (step + 1) * self._batch_size]
            batch = self._data.batch(chosen)
            yield self._data.augment(batch, self._generator(epoch, step)) if self._augment else batch

    def _generator(self, epoch: int, step: int) -> torch.Generator:
        """Start a generator for one batch, so that a run that goes on in the middle sees the same images."""
        name = f"{self._seed} {epoch} {step} {self._rank}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:7], "big"))
