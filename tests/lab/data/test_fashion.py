from __future__ import annotations

import gzip
import hashlib
import runpy
import struct
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gaussiank_lab.data import fashion_mnist_subset

SCRIPT = Path(__file__).parents[3] / "scripts/make_fashion_subset.py"
COUNTS = {"train": 30, "t10k": 10}
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TENFOLD = np.arange(60) % 10  # six labels of each class

# Of uint8 arrays, as scripts/make_fashion_subset.py writes them.
SHA256 = {
    "train_images": "b3a0e38bba94cdd1ad58441b847be5034b9962b7361885c029aaeed5e4572114",
    "train_labels": "093c270ca7facf287beec5996f649928d41bb7b05a0202777e8e894807c655b4",
    "test_images": "93dd3fb463baaa03228b1ed8dd03efedd3c8b8ddb2653bb56b5bd804d26e742d",
    "test_labels": "52f9dd6a1dd501aa6b94656ca51c15e02c5ed8aa13ff757968570487659dfb95",
}


@pytest.fixture
def make() -> Callable[..., None]:
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))
    make: Callable[..., None] = script["make"]
    return make


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write 60 images for each part; image i is filled with i, its label is i mod 10."""
    for part in COUNTS:
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", np.arange(60).repeat(784).reshape(60, 28, 28))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", TENFOLD)
    return tmp_path


def test_the_shipped_file_holds_the_released_arrays() -> None:
    with np.load(str(resources.files("gaussiank_lab.data") / "fashion_mnist_subset.npz")) as arrays:
        digests = {name: hashlib.sha256(arrays[name].tobytes()).hexdigest() for name in arrays.files}
    assert digests == SHA256


def test_the_table_loads_what_was_released() -> None:
    for name, part in zip(("train", "test"), fashion_mnist_subset(), strict=True):
        labels = part.labels.to(torch.uint8)
        assert hashlib.sha256(part.images.numpy().tobytes()).hexdigest() == SHA256[f"{name}_images"]
        assert hashlib.sha256(labels.numpy().tobytes()).hexdigest() == SHA256[f"{name}_labels"]


def test_script_keeps_each_label_with_its_image(make: Callable[..., None], source: Path) -> None:
    make(source, source / "out.npz", COUNTS)
    with np.load(source / "out.npz") as arrays:
        for part, n in (("train", 30), ("test", 10)):
            first_pixels = arrays[f"{part}_images"][:, 0, 0]
            assert len(set(first_pixels.tolist())) == n
            assert (first_pixels % 10).tolist() == arrays[f"{part}_labels"].tolist()
            assert first_pixels.tolist() != sorted(first_pixels.tolist())


def test_a_missing_file_is_named(make: Callable[..., None], source: Path) -> None:
    (source / LABELS).unlink()
    sentence = "must be readable, got: No such file or directory. Install dataset-fashion-mnist or give another"
    with pytest.raises(SystemExit, match=f"{LABELS} {sentence}"):
        make(source, source / "out.npz", COUNTS)


@pytest.mark.parametrize(
    ("name", "array", "sentence"),
    [
        (IMAGES, np.zeros((60, 27, 28)), r"must hold entries of shape \(28, 28\), got \(27, 28\)"),
        (LABELS, TENFOLD[:59], "must hold a label for each of 60 images, got 59"),
        (LABELS, np.where(TENFOLD == 4, 10, TENFOLD), "must hold labels below 10, got 10"),
        (LABELS, np.where(TENFOLD == 4, 3, TENFOLD), "must hold 3 labels of each class, got 0 of class 4"),
    ],
)
def test_files_that_are_not_the_full_set_are_named(
    make: Callable[..., None], source: Path, name: str, array: np.ndarray, sentence: str
) -> None:
    write_idx(source / name, array)
    with pytest.raises(SystemExit, match=f"{name} {sentence}"):
        make(source, source / "out.npz", COUNTS)
    assert not (source / "out.npz").exists()
