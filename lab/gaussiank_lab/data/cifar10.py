"""CIFAR-10 in its python form: five training batches and one of tests, each a pickle."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gaussiank_lab.data.damage import damaged, reading
from gaussiank_lab.data.image_set import ImageSet
from gaussiank_lab.data.pickles import read_pickled_arrays
from gaussiank_lab.data.source import DataSource, Wanted, digest_of, folders, locate
from gaussiank_lab.data.split import Data
from gaussiank_lab.tasks import ImageClassification

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the 50,000 training images
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = ("test_batch",)
GET = (
    "Get cifar-10-python.tar.gz from the page of A. Krizhevsky (www.cs.toronto.edu/~kriz/cifar.html), unpack it there "
    "and give --data-dir."
)


def _find(data_dir: Path | None) -> Path:
    return locate("cifar10", folders(data_dir, "cifar-10-batches-py", "cifar10"), (*TRAIN, *TEST), GET)


def read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Read one batch file: images uint8 ``[n, 3, 32, 32]`` and labels int64 ``[n]``.

    Raises:
        ValueError: the file is damaged, or no batch; names it.
    """
    with reading(path, "be a CIFAR-10 batch", OSError, pickle.UnpicklingError):
        held = read_pickled_arrays(path.read_bytes())
    images, labels = held.get("data"), held.get("labels")
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072:
        raise damaged(path, "hold images of 3072 bytes under data", getattr(images, "shape", type(images).__name__))
    if not isinstance(labels, list) or not all(isinstance(label, int) and 0 <= label < 10 for label in labels):
        raise damaged(path, "hold labels in [0, 9] under labels", "something else")
    if len(labels) != len(images):
        raise damaged(path, f"hold a label for each of {len(images)} images", len(labels))
    return torch.from_numpy(images.copy()).view(-1, 3, 32, 32), torch.tensor(labels)


def _load(wanted: Wanted) -> Data:
    place = _find(wanted.data_dir)

    def part(names: tuple[str, ...]) -> ImageSet:
        images, labels = zip(*(read_batch(place / name) for name in names), strict=True)
        return ImageSet(torch.cat(images), torch.cat(labels), CLASSES, CIFAR_MEAN, CIFAR_STD, wanted.image)

    train, test = part(TRAIN), part(TEST)
    digest = digest_of((train.images, train.labels, test.images, test.labels))
    return Data(ImageClassification(), train, test, len(CLASSES), digest)


CIFAR10 = DataSource("cifar10", "images", "60,000 colour images, 32 x 32, 10 classes", GET, _find, _load)
