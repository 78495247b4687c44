"""Any images in folders named by their class, as ImageNet is kept: train/CLASS/*.jpg and val/CLASS/*.jpg."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gaussiank_lab.data.damage import damaged, reading
from gaussiank_lab.data.image_set import ImageShape, fit, shifted
from gaussiank_lab.data.source import DataSource, Wanted, digest_of_files, folders
from gaussiank_lab.data.split import Batch, Data, Split
from gaussiank_lab.tasks import ImageClassification

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MARGIN = 256 / 224  # the shorter side is made this much longer than the square that is cut out of its middle
GET = "Put images into DIR/train/CLASS/ and DIR/val/CLASS/ (or DIR/imagefolder/train/...) and give --data-dir DIR."


@dataclass(frozen=True, eq=False)
class FolderImages(Split):
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


def _find(data_dir: Path | None) -> Path:
    places = folders(data_dir, "imagefolder", "imagenet")
    for place in places:
        if (place / "train").is_dir() and _test_folder(place).is_dir():
            return place
    where = " or ".join(map(str, places)) or "no folder (--data-dir was not given)"
    raise FileNotFoundError(f"data_dir must hold imagefolder, got {where} without train and val. {GET}")


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
        raise damaged(folder, "hold images in folders of their classes", "none", GET)
    files, labels = zip(*found, strict=True)
    return FolderImages(files, torch.tensor(labels), classes, shape)


def _load(wanted: Wanted) -> Data:
    place = _find(wanted.data_dir)
    classes = tuple(sorted(path.name for path in (place / "train").iterdir() if path.is_dir()))
    test_folder = _test_folder(place)
    unknown = sorted({path.name for path in test_folder.iterdir() if path.is_dir()} - set(classes))
    if unknown:
        raise damaged(test_folder, "hold classes of train alone", unknown[0], "Put it into train too, or away.")
    train, test = _part(place / "train", classes, wanted.image), _part(test_folder, classes, wanted.image)
    return Data(ImageClassification(), train, test, len(classes), digest_of_files((*train.files, *test.files)))


IMAGE_FOLDER = DataSource("imagefolder", "images", "images in folders of their classes, as ImageNet", GET, _find, _load)
