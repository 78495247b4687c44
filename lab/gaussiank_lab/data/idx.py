"""Full Fashion-MNIST and MNIST, from the four idx files of both, packed or not."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gaussiank_lab.data.damage import damaged, reading
from gaussiank_lab.data.fashion_subset import FASHION_CLASSES, FASHION_MEAN, FASHION_STD
from gaussiank_lab.data.image_set import ImageSet
from gaussiank_lab.data.source import DataSource, Wanted, digest_of, folders, locate
from gaussiank_lab.data.split import Data
from gaussiank_lab.tasks import ImageClassification

FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the unpacked files, so that it holds for every way of packing them."""
FILES = tuple(FASHION_SHA256)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)  # of the 60,000 training images, scaled to [0, 1]
GET_FASHION = (
    "Install Debian's package dataset-fashion-mnist, or run: gaussiank data fashion-mnist --download --data-dir DIR."
)
GET_MNIST = "Get the four idx files of MNIST, packed or not, put them into DIR/mnist and give --data-dir DIR."


def read_idx(path: Path, entry: tuple[int, ...]) -> Tensor:
    """Read an idx file of unsigned bytes, packed by gzip or not.

    Args:
        path: file; one that ends in .gz is unpacked.
        entry: shape of an entry: (28, 28) for images, () for labels.

    Returns:
        uint8 ``[n, *entry]``.

    Raises:
        ValueError: the file is damaged, or holds something else; names it.
    """
    data = read_unpacked(path)
    dims = 1 + len(entry)
    header = 4 + 4 * dims
    magic = 0x800 + dims  # 8: unsigned bytes
    if len(data) < header or int.from_bytes(data[:4], "big") != magic:
        raise damaged(path, f"begin with the idx magic number {magic}", repr(data[:4]))
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, header, 4))
    if shape[1:] != entry:
        raise damaged(path, f"hold entries of shape {entry}", shape[1:])
    if len(data) - header != math.prod(shape):
        raise damaged(path, f"hold {math.prod(shape)} bytes after its header", len(data) - header)
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy())


def read_unpacked(path: Path) -> bytes:
    """Read a file, unpacked when its name ends in .gz; a damaged one is named."""
    with reading(path, "be a whole file", OSError, EOFError, zlib.error):
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data


def file_in(place: Path, name: str) -> Path:
    """Return the packed file, or else the plain one."""
    packed = place / f"{name}.gz"
    return packed if packed.exists() else place / name


def read_part(place: Path, part: str, images: ImageSet) -> ImageSet:
    """Read one part (train or t10k) into a set like ``images``."""
    labels_path = file_in(place, f"{part}-labels-idx1-ubyte")
    pixels = read_idx(file_in(place, f"{part}-images-idx3-ubyte"), (28, 28))
    labels = read_idx(labels_path, ()).long()
    if len(labels) != len(pixels):
        raise damaged(labels_path, f"hold a label for each of {len(pixels)} images", len(labels))
    if len(labels) and int(labels.max()) >= len(images.classes):
        raise damaged(labels_path, f"hold labels below {len(images.classes)}", int(labels.max()))
    return ImageSet(pixels, labels, images.classes, images.mean, images.std, images.shape)


def _find_fashion(data_dir: Path | None) -> Path:
    places = [*folders(data_dir, "fashion-mnist", "FashionMNIST/raw"), DEBIAN]
    return locate("fashion-mnist", places, [f"{name}*" for name in FILES], GET_FASHION)


def _find_mnist(data_dir: Path | None) -> Path:
    places = folders(data_dir, "mnist", "MNIST/raw")
    return locate("mnist", places, [f"{name}*" for name in FILES], GET_MNIST)


def _load_fashion(wanted: Wanted) -> Data:
    like = ImageSet(torch.empty(0), torch.empty(0), FASHION_CLASSES, FASHION_MEAN, FASHION_STD, wanted.image)
    return _loaded(_find_fashion(wanted.data_dir), like)


def _load_mnist(wanted: Wanted) -> Data:
    place = _find_mnist(wanted.data_dir)
    labels = file_in(place, FILES[3])
    # both data sets give their files the same names: a mix-up would train, and report the wrong name
    if hashlib.sha256(read_unpacked(labels)).hexdigest() == FASHION_SHA256[FILES[3]]:
        raise damaged(labels, "belong to MNIST", "Fashion-MNIST's own labels", "Give --dataset fashion-mnist.")
    classes = tuple(map(str, range(10)))
    return _loaded(place, ImageSet(torch.empty(0), torch.empty(0), classes, MNIST_MEAN, MNIST_STD, wanted.image))


def _loaded(place: Path, like: ImageSet) -> Data:
    read = partial(read_part, place, images=like)
    train, test = read("train"), read("t10k")
    digest = digest_of((train.images, train.labels, test.images, test.labels))
    return Data(ImageClassification(), train, test, len(like.classes), digest)


FASHION_MNIST = DataSource(
    "fashion-mnist", "images", "60,000 + 10,000 images of clothes, 28 x 28", GET_FASHION, _find_fashion, _load_fashion
)
MNIST = DataSource("mnist", "images", "60,000 + 10,000 digits, 28 x 28", GET_MNIST, _find_mnist, _load_mnist)
