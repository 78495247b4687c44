"""Small images in folders of their classes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.each import each

from gaussiank_lab.data import DATASETS, ImageShape, Wanted


def write(place: Path, test: str = "val") -> None:
    for part, n in (("train", 3), (test, 1)):
        for number, name in enumerate(("cat", "dog")):
            folder = place / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                colour = (100 * number, 10 * i, 255)
                Image.new("RGB", (60, 40), colour).save(folder / f"{i}.{'png' if i else 'JPG'}", quality=95)
            (folder / "notes.txt").write_text("no image")


@each(("folder", "test"), [("", "val"), ("imagefolder", "test"), ("imagenet", "val")])
def test_images_are_read_from_their_folders(tmp_path: Path, folder: str, test: str) -> None:
    write(tmp_path / folder, test)
    data = DATASETS["imagefolder"].load(Wanted(tmp_path, ImageShape(3, 24)))
    assert (len(data.train), len(data.test), data.outputs) == (6, 2, 2)
    batch = data.train.batch(torch.tensor([1, 5]))
    assert batch.targets[0].tolist() == [0, 1]
    assert batch.inputs[0].shape == (2, 3, 24, 24)
    assert batch.inputs[0][1, :, 0, 0].tolist() == [100, 20, 255]
    prepared = data.train.prepare(batch.inputs)[0]
    assert prepared[1, 2, 0, 0].item() == pytest.approx((1 - 0.406) / 0.225)
    assert data.train.augment(batch, torch.Generator().manual_seed(0)).inputs[0].shape == (2, 3, 24, 24)


def test_the_middle_is_cut_out(tmp_path: Path) -> None:
    write(tmp_path)
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 64:] = 255
    Image.fromarray(pixels).save(tmp_path / "train" / "cat" / "0.JPG", "PNG")
    data = DATASETS["imagefolder"].load(Wanted(tmp_path, ImageShape(3, 32)))
    image = data.train.batch(torch.tensor([0])).inputs[0][0]
    assert image[:, :, :14].max() == 0
    assert image[:, :, 18:].min() == 255


def test_grey_images_become_three_channels(tmp_path: Path) -> None:
    write(tmp_path)
    Image.new("L", (30, 30), 7).save(tmp_path / "train" / "cat" / "1.png")
    data = DATASETS["imagefolder"].load(Wanted(tmp_path, ImageShape(3, 8)))
    assert data.train.batch(torch.tensor([1])).inputs[0][0, :, 4, 4].tolist() == [7, 7, 7]


@each("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40])
def test_a_damaged_image_is_named(tmp_path: Path, content: bytes) -> None:
    write(tmp_path)
    path = tmp_path / "train" / "dog" / "1.png"
    path.write_bytes(content)
    data = DATASETS["imagefolder"].load(Wanted(tmp_path, ImageShape(3, 24)))
    with pytest.raises(ValueError, match=re.escape(f"{path} must be a whole image, got an error (")):
        data.train.batch(torch.tensor([4]))


def test_a_cut_image_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "train" / "dog" / "1.png"
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    data = DATASETS["imagefolder"].load(Wanted(tmp_path, ImageShape(3, 24)))
    with pytest.raises(ValueError, match=re.escape(f"{path} must be a whole image, got an error (")):
        data.train.batch(torch.tensor([4]))


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"data_dir must hold imagefolder, got .* without train and val\. Put ima"
    ):
        DATASETS["imagefolder"].load(Wanted(tmp_path))
    write(tmp_path)
    (tmp_path / "val" / "bird").mkdir()
    with pytest.raises(ValueError, match=r"val must hold classes of train alone, got bird\. Put it into train too"):
        DATASETS["imagefolder"].load(Wanted(tmp_path))
    (tmp_path / "val" / "bird").rmdir()
    for path in (tmp_path / "val").rglob("*.JPG"):
        path.unlink()
    with pytest.raises(ValueError, match=r"val must hold images in folders of their classes, got none\."):
        DATASETS["imagefolder"].load(Wanted(tmp_path))
