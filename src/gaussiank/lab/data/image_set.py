"""Labelled images in memory, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from torch import Tensor

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


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Hold images with their labels.

    Args:
        images: uint8 ``[n, height, width]``.
        labels: int64 ``[n]``.
        classes: name of each label.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


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
    file = resources.files("gaussiank.lab.data") / "fashion_mnist_subset.npz"
    with file.open("rb") as opened, np.load(opened) as arrays:

        def part(name: str) -> ImageSet:
            images = torch.from_numpy(arrays[f"{name}_images"])
            return ImageSet(images, torch.from_numpy(arrays[f"{name}_labels"]).long(), FASHION_CLASSES)

        return part("train"), part("test")
