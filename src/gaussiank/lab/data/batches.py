"""Which images each worker sees at which step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from gaussiank.lab.data.image_set import ImageSet


class Batches:
    """Deal the images to workers anew each epoch; the order depends on seed and epoch alone.

    Every worker gets as many batches, of different images; what does not fill a batch is left out of the epoch.

    Args:
        data: images to deal.
        batch_size: images for each worker and step.
        rank: this worker.
        world_size: number of workers.
        seed: number that the order starts from.

    Raises:
        ValueError: too few images for one batch on every worker, or a rank that is none of theirs.
    """

    def __init__(self, data: ImageSet, batch_size: int, *, rank: int, world_size: int, seed: int) -> None:
        if not 1 <= world_size <= len(data):
            raise ValueError(
                f"world_size must be in [1, {len(data)}] for {len(data)} images, got {world_size}. "
                "Start as many workers."
            )
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank must be in [0, {world_size - 1}] on {world_size} workers, got {rank}. Give this worker's own."
            )
        if not 1 <= batch_size <= len(data) // world_size:
            raise ValueError(
                f"batch_size must be in [1, {len(data) // world_size}] for {len(data)} images on {world_size} workers, "
                f"got {batch_size}. Choose one that fits."
            )
        self._data = data
        self._batch_size = batch_size
        self._sampler: DistributedSampler[Any] = DistributedSampler(
            cast("Dataset[Any]", data), world_size, rank, shuffle=True, seed=seed, drop_last=True
        )

    def __len__(self) -> int:
        """Return the steps in an epoch."""
        return len(self._sampler) // self._batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(images uint8 [b, height, width], labels int64 [b])`` for each step of an epoch."""
        self._sampler.set_epoch(epoch)
        order = torch.tensor(list(self._sampler))
        for step in range(len(self)):
            chosen = order[step * self._batch_size : (step + 1) * self._batch_size]
            yield self._data.images[chosen], self._data.labels[chosen]
