"""Stand-in for ImageNet, to time large models with: its shape, 1,000 classes, and nothing to learn from the world."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gaussiank_lab.data.image_set import ImageSet
from gaussiank_lab.data.source import DataSource, Wanted, digest_of
from gaussiank_lab.data.split import Batch, Data
from gaussiank_lab.tasks import ImageClassification

CLASSES, PATTERNS = 1000, 64
TRAIN, TEST = 12_800, 32
GET = "It is made on the spot; for real images give --dataset imagefolder."


class _Repeated(ImageSet):
    """Deals the same few images again and again under many numbers, so that a large batch costs no memory."""

    def __len__(self) -> int:
        return TRAIN

    def batch(self, chosen: Tensor) -> Batch:
        """Collect images and labels, number modulo the images held."""
        return super().batch(chosen % len(self.labels))


def _load(wanted: Wanted) -> Data:
    generator = torch.Generator().manual_seed(19110877)
    size = wanted.image.size
    images = torch.randint(0, 256, (PATTERNS, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (PATTERNS,), generator=generator)
    names = tuple(map(str, range(CLASSES)))
    numbers: tuple[tuple[float, ...], tuple[float, ...]] = ((0.5,) * 3, (0.289,) * 3)  # of a uniform law
    train = _Repeated(images, labels, names, *numbers, wanted.image)
    test = ImageSet(images[:TEST], labels[:TEST], names, *numbers, wanted.image)
    return Data(ImageClassification(), train, test, CLASSES, digest_of((images, labels)))


def _find(data_dir: Path | None) -> Path:
    return Path(__file__)


SYNTHETIC_IMAGES = DataSource(
    "synthetic-images", "images", "stand-in: noise of the model's size, 1,000 classes, for timing", GET, _find, _load
)
