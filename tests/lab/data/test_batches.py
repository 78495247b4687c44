from __future__ import annotations

import pytest
import torch
from tests.each import each

from gaussiank_lab.data import Batches, ImageSet


def numbered(n: int) -> ImageSet:
    return ImageSet(torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1), torch.arange(n), ("x",))


def dealt(n: int, batch_size: int, world_size: int, seed: int, epoch: int) -> list[list[list[int]]]:
    workers = [Batches(numbered(n), batch_size, rank=r, world_size=world_size, seed=seed) for r in range(world_size)]
    return [[batch.targets[0].tolist() for batch in worker.epoch(epoch)] for worker in workers]


@each(("n", "batch_size", "world_size", "steps"), [(40, 5, 2, 4), (41, 4, 3, 3), (7, 2, 3, 1)])
def test_workers_share_an_epoch_without_overlap(n: int, batch_size: int, world_size: int, steps: int) -> None:
    shares = dealt(n, batch_size, world_size, seed=3, epoch=1)
    assert [len(share) for share in shares] == [steps] * world_size
    seen = [label for share in shares for batch in share for label in batch]
    assert len(seen) == len(set(seen)) == steps * batch_size * world_size


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = dealt(40, 5, 2, seed=3, epoch=1)
    assert first == dealt(40, 5, 2, seed=3, epoch=1)
    assert first != dealt(40, 5, 2, seed=3, epoch=2)
    assert first != dealt(40, 5, 2, seed=4, epoch=1)


def test_images_and_labels_stay_together() -> None:
    for (images,), (labels,) in Batches(numbered(20), 4, rank=0, world_size=1, seed=0).epoch(0):
        assert images.flatten().tolist() == labels.tolist()


@each("batch_size", [0, 11])
def test_a_batch_must_fit(batch_size: int) -> None:
    message = rf"batch_size must be in \[1, 10\] for 20 images on 2 workers, got {batch_size}. Choose one that fits."
    with pytest.raises(ValueError, match=message):
        Batches(numbered(20), batch_size, rank=0, world_size=2, seed=0)


@each("world_size", [0, 21])
def test_every_worker_must_get_an_image(world_size: int) -> None:
    message = rf"world_size must be in \[1, 20\] for 20 images, got {world_size}. Start as many workers."
    with pytest.raises(ValueError, match=message):
        Batches(numbered(20), 1, rank=0, world_size=world_size, seed=0)


@each("rank", [-1, 2])
def test_rank_must_be_one_of_the_workers(rank: int) -> None:
    message = rf"rank must be in \[0, 1\] on 2 workers, got {rank}. Give this worker's own."
    with pytest.raises(ValueError, match=message):
        Batches(numbered(20), 1, rank=rank, world_size=2, seed=0)


def test_an_epoch_without_remainder_shows_every_image() -> None:
    seen = [label for share in dealt(40, 5, 2, seed=3, epoch=1) for batch in share for label in batch]
    assert sorted(seen) == list(range(40))


def test_length_is_the_steps_of_an_epoch() -> None:
    batches = Batches(numbered(41), 4, rank=2, world_size=3, seed=0)
    assert len(batches) == len(list(batches.epoch(0))) == 3


def augmented(seed: int, rank: int, epoch: int) -> list[torch.Tensor]:
    images = torch.arange(1, 101, dtype=torch.uint8).repeat(32, 1).view(32, 10, 10)
    data = ImageSet(images, torch.arange(32), ("x",))
    batches = Batches(data, 4, rank=rank, world_size=2, seed=seed, augment=True)
    return [batch.inputs[0] for batch in batches.epoch(epoch)]


def test_augmentation_depends_on_seed_epoch_step_and_rank_alone() -> None:
    first = augmented(seed=1, rank=0, epoch=2)
    for once, again in zip(first, augmented(seed=1, rank=0, epoch=2), strict=True):
        assert torch.equal(once, again)
    assert not torch.equal(first[0], first[1])  # the images are all alike, so only their changes differ
    for other in (augmented(2, 0, 2), augmented(1, 1, 2), augmented(1, 0, 3)):
        assert not torch.equal(first[0], other[0])
