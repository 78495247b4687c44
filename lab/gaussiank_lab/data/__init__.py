"""What models are trained on: one line in the table for each data set."""

import warnings
from typing import Any

from gaussiank_lab.data.image_files import CIFAR10, FASHION_MNIST, FASHION_MNIST_SUBSET, MNIST, fashion_mnist_subset
from gaussiank_lab.data.image_set import IMAGE_FOLDER, SYNTHETIC_IMAGES, ImageSet
from gaussiank_lab.data.source import GREY_28, Batch, Batches, Data, DataSource, DataSplit, ImageShape, Wanted
from gaussiank_lab.data.speech import AN4, SYNTHETIC_SPEECH
from gaussiank_lab.data.text import PTB, STDLIB, TEXT, TokenSet

_IMAGES = (FASHION_MNIST_SUBSET, FASHION_MNIST, MNIST, CIFAR10, IMAGE_FOLDER, SYNTHETIC_IMAGES)
_LANGUAGE = (STDLIB, TEXT, PTB)
_SPEECH = (AN4, SYNTHETIC_SPEECH)

DATASETS: dict[str, DataSource] = {source.name: source for source in (*_IMAGES, *_LANGUAGE, *_SPEECH)}
"""Name -> where a data set comes from."""

__all__ = [
    "DATASETS",
    "GREY_28",
    "Batch",
    "Batches",
    "Data",
    "DataSource",
    "DataSplit",
    "ImageSet",
    "ImageShape",
    "TokenSet",
    "Wanted",
    "fashion_mnist_subset",
]


def __getattr__(name: str) -> Any:
    if name != "Split":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("data.Split is called DataSplit. Use that name.", DeprecationWarning, stacklevel=2)
    return DataSplit
