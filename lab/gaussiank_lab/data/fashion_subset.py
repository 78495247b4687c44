"""The part of Fashion-MNIST that comes with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import torch

from gaussiank_lab.data.image_set import ImageSet
from gaussiank_lab.data.source import DataSource, Wanted, digest_of
from gaussiank_lab.data.split import Data
from gaussiank_lab.tasks import ImageClassification

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_MEAN, FASHION_STD = (0.2860,), (0.3530,)  # of the 60,000 training images, scaled to [0, 1]

_FILE = resources.files("gaussiank_lab.data") / "fashion_mnist_subset.npz"


def fashion_mnist_subset() -> tuple[ImageSet, ImageSet]:
    """Load the package's own 10,000 training and 2,000 test images of Fashion-MNIST; no network.

    Returns:
        Training and test set, 28 x 28 images, as many of each of the ten classes.

    Source: Xiao, Rasul, Vollgraf 2017, "Fashion-MNIST"; chosen by ``scripts/make_fashion_subset.py``.

    Example:
        >>> train, test = fashion_mnist_subset()
        >>> len(train), len(test), tuple(train.images.shape)
        (10000, 2000, (10000, 28, 28))
    """
    with _FILE.open("rb") as opened, np.load(opened) as arrays:

        def part(name: str) -> ImageSet:
            images = torch.from_numpy(arrays[f"{name}_images"])
            labels = torch.from_numpy(arrays[f"{name}_labels"]).long()
            return ImageSet(images, labels, FASHION_CLASSES, FASHION_MEAN, FASHION_STD)

        return part("train"), part("test")


def _find(data_dir: Path | None) -> Path:
    return Path(str(_FILE))


def _load(wanted: Wanted) -> Data:
    train, test = fashion_mnist_subset()
    digest = digest_of((train.images, train.labels, test.images, test.labels))
    task = ImageClassification()
    return Data(task, train.fitted(wanted.image), test.fitted(wanted.image), len(FASHION_CLASSES), digest)


FASHION_MNIST_SUBSET = DataSource(
    "fashion-mnist-subset",
    "images",
    "10,000 + 2,000 images of Fashion-MNIST, 28 x 28",
    "It comes with the package.",
    _find,
    _load,
)
