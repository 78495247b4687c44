"""What models are trained on: one line in the table for each data set."""

from collections.abc import Callable

from .batches import Batches
from .image_set import ImageSet, fashion_mnist_subset

DATASETS: dict[str, Callable[[], tuple[ImageSet, ImageSet]]] = {
    "fashion-mnist-subset": fashion_mnist_subset,
}
"""Name -> function that loads training and test set."""

__all__ = ["DATASETS", "Batches", "ImageSet", "fashion_mnist_subset"]
