"""Images as a model takes them: whole sets in memory, folders of image files, and made-up ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from gaussiank_lab.data.source import (
    Batch,
    Data,
    DataSource,
    DataSplit,
    ImageShape,
    Wanted,
    damaged,
    digest_of,
    digest_of_files,
    folders,
    reading,
)
from gaussiank_lab.tasks import ImageClassification

MAX_PADDING = 4
"""Pixels by which an image is framed in black rather than stretched: 28 x 28 becomes 32 x 32 so in the paper."""


@dataclass(frozen=True, eq=False)
class ImageSet(DataSplit):
    """Hold images with their labels.

    Args:
        images: uint8 ``[n, height, width]`` or ``[n, channels, height, width]``.
        labels: int64 ``[n]``.
        classes: name of each label.
        mean: of each channel over the training images, scaled to [0, 1].
        std: deviation of each channel.
        shape: what ``prepare`` makes of them; None leaves them as they are.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    shape: ImageShape | None = None
    unit = "images"

    def __len__(self) -> int:
        return len(self.labels)

    def fitted(self, shape: ImageShape) -> ImageSet:
        """Return the same images for a model that wants ``shape``."""
        return replace(self, shape=shape)

    def batch(self, chosen: Tensor) -> Batch:
        """Collect images uint8 ``[b, channels, height, width]`` and labels int64 ``[b]``."""
        images = self.images[chosen]
        return Batch((images if images.dim() == 4 else images.unsqueeze(1),), (self.labels[chosen],))

    def prepare(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Fit and standardise images: float32 ``[b, channels, size, size]``, as ``shape`` says."""
        return (fit(inputs[0], self.shape, self.mean, self.std),)

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Shift each image by up to four pixels, and mirror one in two."""
        return Batch((shifted(batch.inputs[0], generator),), batch.targets)


def fit(images: Tensor, shape: ImageShape | None, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Standardise images, and give them the channels and size of ``shape``.

    A size up to four pixels larger is reached by a black frame, any other by bilinear resizing. One channel is
    repeated, three are averaged into one.

    Args:
        images: uint8 ``[b, channels, height, width]``. Not modified.
        shape: what to make of them, or None.
        mean: of each channel, scaled to [0, 1].
        std: of each channel.

    Returns:
        float32 ``[b, channels, size, size]``.

    Example:
        >>> images = torch.zeros(5, 1, 28, 28, dtype=torch.uint8)
        >>> fit(images, ImageShape(3, 32), (0.5,), (0.5,))[0, :, 0, 0]
        tensor([-1., -1., -1.])
    """
    values = images.float() / 255
    if shape is not None and shape.size != values.shape[-1]:
        more = shape.size - values.shape[-1]
        if 0 < more <= MAX_PADDING and values.shape[-1] == values.shape[-2]:
            values = functional.pad(values, (more // 2, more - more // 2) * 2)
        else:
            size = (shape.size, shape.size)
            values = functional.interpolate(values, size, mode="bilinear", antialias=True)
    values = (values - _column(mean, values)) / _column(std, values)
    if shape is None or shape.channels == values.shape[1]:
        return values
    return values.mean(1, keepdim=True) if shape.channels == 1 else values.expand(-1, shape.channels, -1, -1)


def _column(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(numbers, device=like.device).view(1, -1, 1, 1)


def shifted(images: Tensor, generator: torch.Generator, most: int = 4) -> Tensor:
    """Shift each image by up to ``most`` pixels each way, filling with black, and mirror one in two.

    Args:
        images: ``[b, channels, height, width]``. Not modified.
        generator: decides; the same state gives the same images.
        most: pixels.

    Source: He et al. 2016, "Deep Residual Learning", section 4.2.
    """
    count, channels, height, width = images.shape
    down, right = torch.randint(0, 2 * most + 1, (2, count, 1), generator=generator)
    rows = down + torch.arange(height)
    columns = right + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    framed = functional.pad(images, (most,) * 4)
    which, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return framed[which, channel, rows[:, None, :, None], columns[:, None, None, :]]


SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MARGIN = 256 / 224  # the shorter side is made this much longer than the square that is cut out of its middle
_GET_FOLDER = (
    "Put images into DIR/train/CLASS/ and DIR/val/CLASS/ (or DIR/imagefolder/train/...) and give --data-dir DIR."
)


@dataclass(frozen=True, eq=False)
class FolderImages(DataSplit):
    """Read images from files when they are dealt.

    Args:
        files: the images.
        labels: int64 ``[n]``.
        classes: names of the labels.
        shape: of the model's images; the middle of each is cut out and scaled to it.
    """

    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]
    shape: ImageShape
    unit = "images"

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, chosen: Tensor) -> Batch:
        """Read images uint8 ``[b, 3, size, size]``, and labels int64 ``[b]``; a damaged file is named."""
        images = torch.stack([read_image(self.files[i], self.shape.size) for i in chosen.tolist()])
        return Batch((images,), (self.labels[chosen],))

    def prepare(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Standardise: float32 ``[b, channels, size, size]``."""
        return (fit(inputs[0], self.shape, IMAGENET_MEAN, IMAGENET_STD),)

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Shift each image by up to four pixels, and mirror one in two."""
        return Batch((shifted(batch.inputs[0], generator),), batch.targets)


def read_image(path: Path, size: int) -> Tensor:
    """Read an image file, and cut the middle out: uint8 ``[3, size, size]``.

    Raises:
        ValueError: the file is damaged; names it.
    """
    errors = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # all that Pillow raises
    with reading(path, "be a whole image", *errors), Image.open(path) as opened:
        image = opened.convert("RGB")
    factor = size * MARGIN / min(image.size)
    wide, high = (max(size, round(side * factor)) for side in image.size)
    image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - size) // 2, (high - size) // 2
    cut = np.asarray(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(cut.copy()).permute(2, 0, 1)


def _find_folder(data_dir: Path | None) -> Path:
    places = folders(data_dir, "imagefolder", "imagenet")
    for place in places:
        if (place / "train").is_dir() and _test_folder(place).is_dir():
            return place
    where = " or ".join(map(str, places)) or "no folder (--data-dir was not given)"
    raise FileNotFoundError(f"data_dir must hold imagefolder, got {where} without train and val. {_GET_FOLDER}")


def _test_folder(place: Path) -> Path:
    return next((place / name for name in ("val", "test") if (place / name).is_dir()), place / "val")


def _part(folder: Path, classes: tuple[str, ...], shape: ImageShape) -> FolderImages:
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise damaged(folder, "hold images in folders of their classes", "none", _GET_FOLDER)
    files, labels = zip(*found, strict=True)
    return FolderImages(files, torch.tensor(labels), classes, shape)


def _load_folder(wanted: Wanted) -> Data:
    place = _find_folder(wanted.data_dir)
    classes = tuple(sorted(path.name for path in (place / "train").iterdir() if path.is_dir()))
    test_folder = _test_folder(place)
    unknown = sorted({path.name for path in test_folder.iterdir() if path.is_dir()} - set(classes))
    if unknown:
        raise damaged(test_folder, "hold classes of train alone", unknown[0], "Put it into train too, or away.")
    train, test = _part(place / "train", classes, wanted.image), _part(test_folder, classes, wanted.image)
    return Data(ImageClassification(), train, test, len(classes), digest_of_files((*train.files, *test.files)))


IMAGE_FOLDER = DataSource(
    "imagefolder", "images", "images in folders of their classes, as ImageNet", _GET_FOLDER, _find_folder, _load_folder
)


CLASSES, PATTERNS = 1000, 64
TRAIN, TEST = 12_800, 32
_GET_SYNTHETIC = "It is made on the spot; for real images give --dataset imagefolder."


class _Repeated(ImageSet):
    """Deals the same few images again and again under many numbers, so that a large batch costs no memory."""

    def __len__(self) -> int:
        return TRAIN

    def batch(self, chosen: Tensor) -> Batch:
        """Collect images and labels, number modulo the images held."""
        return super().batch(chosen % len(self.labels))


def _load_synthetic(wanted: Wanted) -> Data:
    generator = torch.Generator().manual_seed(19110877)
    size = wanted.image.size
    images = torch.randint(0, 256, (PATTERNS, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (PATTERNS,), generator=generator)
    names = tuple(map(str, range(CLASSES)))
    numbers: tuple[tuple[float, ...], tuple[float, ...]] = ((0.5,) * 3, (0.289,) * 3)  # of a uniform law
    train = _Repeated(images, labels, names, *numbers, wanted.image)
    test = ImageSet(images[:TEST], labels[:TEST], names, *numbers, wanted.image)
    return Data(ImageClassification(), train, test, CLASSES, digest_of((images, labels)))


def _find_synthetic(data_dir: Path | None) -> Path:
    return Path(__file__)


SYNTHETIC_IMAGES = DataSource(
    "synthetic-images",
    "images",
    "stand-in: noise of the model's size, 1,000 classes, for timing",
    _GET_SYNTHETIC,
    _find_synthetic,
    _load_synthetic,
)
