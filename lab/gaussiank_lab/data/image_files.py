"""Data sets of images in one file or a few: the subset in the package, MNIST's idx files, CIFAR-10's pickles."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import pickle
import urllib.request
import zlib
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussiank_lab.data.image_set import ImageSet
from gaussiank_lab.data.source import Data, DataSource, Wanted, damaged, digest_of, folders, locate, reading
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


class _Array:
    """Stands for numpy's array while a pickle is read: keeps the state that it is given, and makes nothing of it."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, tuple) else ()


class _Dtype(_Array):
    """Stands for numpy's dtype."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name


def _encode(text: Any, _: Any) -> bytes:
    if not isinstance(text, str):
        raise pickle.UnpicklingError("bytes are spelled by something that is no text")
    return text.encode("latin1")


# What a pickled array names, and the harmless stand-in for each. Nothing else can be named.
_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _FileReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of images needs")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers outside itself")


def read_pickled_arrays(data: bytes) -> dict[str, Any]:
    """Read a pickled dictionary of lists, texts and uint8 arrays, as Python 2 or 3 has written it.

    Unlike ``pickle.load`` it calls nothing but five stand-ins, so a hostile file can do no more than fail to be read.

    Args:
        data: bytes of the pickle.

    Returns:
        The dictionary, its keys as text, its arrays as numpy's.

    Raises:
        pickle.UnpicklingError: it is no pickle of that kind.
    """
    try:
        value = _FileReader(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # noqa: BLE001  damaged bytes raise nearly anything inside the unpickler
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from None
    if not isinstance(value, dict):
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}, not a dictionary")
    return {_text(key): _array(item) if isinstance(item, _Array) else item for key, item in value.items()}


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


def _array(held: _Array) -> NDArray[np.uint8]:
    try:
        _, shape, dtype, by_column, data = held.state
    except ValueError:
        raise pickle.UnpicklingError("an array in it is cut short") from None
    sound = isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)
    if not sound or not isinstance(dtype, _Dtype) or dtype.name != "u1" or not isinstance(data, bytes):
        raise pickle.UnpicklingError("an array in it is not of unsigned bytes")
    if by_column or len(data) != math.prod(shape):
        raise pickle.UnpicklingError(f"an array in it holds {len(data)} bytes where its shape is {shape}")
    array: NDArray[np.uint8] = np.frombuffer(data, np.uint8).reshape(shape)
    return array


CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the 50,000 training images
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = ("test_batch",)
GET = (
    "Get cifar-10-python.tar.gz from the page of A. Krizhevsky (www.cs.toronto.edu/~kriz/cifar.html), unpack it there "
    "and give --data-dir."
)


def _find_cifar10(data_dir: Path | None) -> Path:
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


def _load_cifar10(wanted: Wanted) -> Data:
    place = _find_cifar10(wanted.data_dir)

    def part(names: tuple[str, ...]) -> ImageSet:
        images, labels = zip(*(read_batch(place / name) for name in names), strict=True)
        return ImageSet(torch.cat(images), torch.cat(labels), CLASSES, CIFAR_MEAN, CIFAR_STD, wanted.image)

    train, test = part(TRAIN), part(TEST)
    digest = digest_of((train.images, train.labels, test.images, test.labels))
    return Data(ImageClassification(), train, test, len(CLASSES), digest)


CIFAR10 = DataSource(
    "cifar10", "images", "60,000 colour images, 32 x 32, 10 classes", GET, _find_cifar10, _load_cifar10
)


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


def _find_subset(data_dir: Path | None) -> Path:
    return Path(str(_FILE))


def _load_subset(wanted: Wanted) -> Data:
    train, test = fashion_mnist_subset()
    digest = digest_of((train.images, train.labels, test.images, test.labels))
    task = ImageClassification()
    return Data(task, train.fitted(wanted.image), test.fitted(wanted.image), len(FASHION_CLASSES), digest)


FASHION_MNIST_SUBSET = DataSource(
    "fashion-mnist-subset",
    "images",
    "10,000 + 2,000 images of Fashion-MNIST, 28 x 28",
    "It comes with the package.",
    _find_subset,
    _load_subset,
)


BASE_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # plain http: the checksum is what protects
TIMEOUT_S = 30


def download_fashion_mnist(data_dir: Path, base_url: str = BASE_URL) -> Path:
    """Fetch the four files of Fashion-MNIST into ``data_dir/fashion-mnist``.

    A file is renamed into place only when its content has the released SHA-256; one that is there and right is kept.

    Args:
        data_dir: the user's folder of data sets; created when missing.
        base_url: where the files are, with its last slash.

    Returns:
        The folder of the files.

    Raises:
        RuntimeError: a file cannot be fetched, or is another one.
    """
    place = data_dir / "fashion-mnist"
    place.mkdir(parents=True, exist_ok=True)
    for name, expected in FASHION_SHA256.items():
        target = place / f"{name}.gz"
        if target.exists() and _sha256_unpacked(target.read_bytes()) == expected:
            continue
        packed = _fetch(base_url + target.name)
        found = _sha256_unpacked(packed)
        if found != expected:
            raise RuntimeError(
                f"{target.name} must have the SHA-256 {expected[:12]}... when unpacked, got {found[:12]}... from "
                f"{base_url}. Nothing was written; try again or use another source."
            )
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            unfinished.write_bytes(packed)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    return place


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read()
            return data
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise RuntimeError(f"{url} must be within reach, got: {reason}. Fetch the file by other means.") from None


def _sha256_unpacked(packed: bytes) -> str:
    try:
        return hashlib.sha256(gzip.decompress(packed)).hexdigest()
    except (OSError, EOFError, zlib.error):
        return "no gzip file"
