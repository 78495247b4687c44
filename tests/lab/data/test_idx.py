"""Small files in the format of MNIST and Fashion-MNIST, packed and not."""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.each import each

from gaussiank_lab.data import DATASETS, ImageShape, Wanted
from gaussiank_lab.data import image_files as idx
from gaussiank_lab.data.image_files import download_fashion_mnist

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write(place: Path, packed: bool = True) -> dict[str, bytes]:
    """Write 30 training and 20 test images; image i is filled with i, its label is i mod 10."""
    place.mkdir(parents=True, exist_ok=True)
    held: dict[str, bytes] = {}
    for part, n in (("train", 30), ("t10k", 20)):
        held[f"{part}-images-idx3-ubyte"] = idx_bytes(np.arange(n).repeat(784).reshape(n, 28, 28))
        held[f"{part}-labels-idx1-ubyte"] = idx_bytes(np.arange(n) % 10)
    for name, data in held.items():
        (place / f"{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(data) if packed else data)
    return held


@pytest.fixture(autouse=True)
def _not_debians(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "debian")


@each("packed", [True, False])
@each(
    ("name", "folder"),
    [("fashion-mnist", "fashion-mnist"), ("fashion-mnist", "FashionMNIST/raw"), ("mnist", "mnist"), ("mnist", "")],
)
def test_both_sets_are_read(tmp_path: Path, name: str, folder: str, packed: bool) -> None:
    write(tmp_path / folder, packed)
    data = DATASETS[name].load(Wanted(tmp_path, ImageShape(1, 32)))
    assert (len(data.train), len(data.test), data.outputs) == (30, 20, 10)
    batch = data.train.batch(torch.tensor([7, 29]))
    assert batch.inputs[0][:, 0, 0, 0].tolist() == [7, 29]
    assert batch.targets[0].tolist() == [7, 9]
    assert data.train.prepare(batch.inputs)[0].shape == (2, 1, 32, 32)
    assert DATASETS[name].find(tmp_path) == tmp_path / folder


def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path: Path) -> None:
    write(tmp_path / "debian")
    assert len(DATASETS["fashion-mnist"].load(Wanted(None)).train) == 30
    assert len(DATASETS["fashion-mnist"].load(Wanted(tmp_path)).train) == 30


@each("name", ["fashion-mnist", "mnist"])
def test_what_is_missing_is_named_with_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=f"data_dir must hold {name}, got .* without {IMAGES}.*{DATASETS[name].get}"
    ):
        DATASETS[name].load(Wanted(tmp_path))
    write(tmp_path / name)
    (tmp_path / name / f"{LABELS}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"without {LABELS}"):
        DATASETS[name].load(Wanted(tmp_path))


def test_the_same_names_do_not_mix_the_two_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = write(tmp_path)
    labels = "t10k-labels-idx1-ubyte"
    monkeypatch.setitem(idx.FASHION_SHA256, labels, hashlib.sha256(held[labels]).hexdigest())
    with pytest.raises(
        ValueError, match=r"must belong to MNIST, got Fashion-MNIST's own labels\. Give --dataset fashion"
    ):
        DATASETS["mnist"].load(Wanted(tmp_path))


WHOLE = idx_bytes(np.zeros((30, 28, 28)))


@each(
    ("name", "data", "sentence"),
    [
        (IMAGES, gzip.compress(WHOLE)[:-9], "must be a whole file, got an error (Compressed file ended"),
        (IMAGES, b"not packed", "must be a whole file, got an error (Not a gzipped file"),
        (IMAGES, gzip.compress(b"\x00" * 99), r"must begin with the idx magic number 2051, got b'\x00\x00\x00\x00'"),
        (IMAGES, gzip.compress(b"\x00\x00\x08"), "must begin with the idx magic number 2051, got"),
        (IMAGES, gzip.compress(idx_bytes(np.zeros((30, 27, 28)))), "must hold entries of shape (28, 28), got (27, 28)"),
        (IMAGES, gzip.compress(WHOLE[:-1]), "must hold 23520 bytes after its header, got 23519"),
        (LABELS, gzip.compress(idx_bytes(np.zeros(29))), "must hold a label for each of 30 images, got 29"),
        (LABELS, gzip.compress(idx_bytes(np.full(30, 10))), "must hold labels below 10, got 10"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    write(tmp_path)
    (tmp_path / f"{name}.gz").write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}.gz {sentence}")):
        DATASETS["fashion-mnist"].load(Wanted(tmp_path))


# ---------------------------------------------------------------------- download


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for the authors' server: a folder, whose content is what was released."""
    held = write(tmp_path / "server")
    monkeypatch.setattr(
        "gaussiank_lab.data.image_files.FASHION_SHA256",
        {name: hashlib.sha256(data).hexdigest() for name, data in held.items()},
    )
    return tmp_path / "server"


def test_download_keeps_what_was_released(tmp_path: Path, source: Path) -> None:
    place = download_fashion_mnist(tmp_path / "data", f"{source.as_uri()}/")
    assert place == tmp_path / "data" / "fashion-mnist"
    assert sorted(path.name for path in place.iterdir()) == sorted(path.name for path in source.iterdir())
    assert len(DATASETS["fashion-mnist"].load(Wanted(tmp_path / "data")).train) == 30
    (source / f"{IMAGES}.gz").unlink()
    download_fashion_mnist(tmp_path / "data", f"{source.as_uri()}/")  # what is there and right is not fetched again


@pytest.mark.parametrize("content", [gzip.compress(b"something else"), b"not packed"])
def test_download_refuses_other_content(tmp_path: Path, source: Path, content: bytes) -> None:
    (source / f"{LABELS}.gz").write_bytes(content)
    with pytest.raises(
        RuntimeError, match=rf"{LABELS}.gz must have the SHA-256 [0-9a-f]+\.\.\. when unpacked, got .* from"
    ):
        download_fashion_mnist(tmp_path / "data", f"{source.as_uri()}/")
    assert [path.name for path in (tmp_path / "data" / "fashion-mnist").iterdir()] == [f"{IMAGES}.gz"]


def test_download_out_of_reach_is_one_sentence(tmp_path: Path, source: Path) -> None:
    (source / f"{IMAGES}.gz").unlink()
    with pytest.raises(
        RuntimeError, match=rf"{IMAGES}.gz must be within reach, got: .*\. Fetch the file by other means\."
    ):
        download_fashion_mnist(tmp_path / "data", f"{source.as_uri()}/")
