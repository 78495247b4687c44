"""Small batches in CIFAR-10's format, as Python 2 and Python 3 write them, and pickles that mean harm."""

from __future__ import annotations

import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.each import each

from gaussiank_lab.data import DATASETS, ImageShape, Wanted
from gaussiank_lab.data.image_files import TEST, TRAIN, read_batch, read_pickled_arrays


def by_python_2(images: np.ndarray, labels: list[int]) -> bytes:
    """Write a batch with the opcodes that Python 2 wrote the released files with: its texts are bytes."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<I", len(value)) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    )
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + number(0) + b"tb"
    shape = b"".join(number(side) for side in images.shape) + b"\x86"
    state = b"(" + number(1) + shape + dtype + b"\x89" + text(images.tobytes()) + b"tb"
    listed = b"](" + b"".join(number(label) for label in labels) + b"e"
    batch = text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + listed
    return b"\x80\x02}(" + batch + text(b"data") + array + state + b"u."


def by_python_3(images: np.ndarray, labels: list[int], protocol: int = 2) -> bytes:
    return pickle.dumps({b"data": images, b"labels": labels, b"filenames": [b"a.png"]}, protocol=protocol)


def pixels(n: int, first: int = 0) -> np.ndarray:
    return (np.arange(n * 3072).reshape(n, 3072) + first).astype(np.uint8)


def write(place: Path) -> None:
    place.mkdir(parents=True)
    for i, name in enumerate((*TRAIN, *TEST)):
        (place / name).write_bytes(by_python_2(pixels(4, first=i), [i, 1, 2, 9]))


def test_the_hand_written_opcodes_are_a_pickle_of_a_batch() -> None:
    held = pickle.loads(by_python_2(pixels(2), [3, 4]), encoding="bytes")
    np.testing.assert_array_equal(held[b"data"], pixels(2))
    assert held[b"labels"] == [3, 4]


@each("folder", ["cifar-10-batches-py", "cifar10", "."])
def test_the_set_is_read(tmp_path: Path, folder: str) -> None:
    write(tmp_path / "data" / folder)
    data = DATASETS["cifar10"].load(Wanted(tmp_path / "data", ImageShape(3, 32)))
    assert (len(data.train), len(data.test), data.outputs) == (20, 4, 10)
    batch = data.train.batch(torch.tensor([5, 8]))
    expected = torch.from_numpy(pixels(4, first=1)[1].reshape(3, 32, 32))  # red, then green, then blue, row by row
    assert torch.equal(batch.inputs[0][0], expected)
    assert batch.targets[0].tolist() == [1, 2]
    assert data.test.batch(torch.tensor([0])).targets[0].tolist() == [5]
    assert data.train.prepare(batch.inputs)[0].shape == (2, 3, 32, 32)


@each("protocol", [2, 3, 4])
def test_batches_by_python_3_are_read_too(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "batch").write_bytes(by_python_3(pixels(3), [0, 5, 9], protocol))
    images, labels = read_batch(tmp_path / "batch")
    assert torch.equal(images, torch.from_numpy(pixels(3)).view(3, 3, 32, 32))
    assert labels.tolist() == [0, 5, 9]


class Harm:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@each(
    ("harm", "asked"),
    [
        (Harm(os.system, "touch harmed"), "posix.system"),
        (Harm(eval, "open('harmed', 'w')"), "builtins.eval"),
        (Harm(np.fromfile, "secret"), "numpy.fromfile"),
        (Harm(np.ndarray, (3,), np.dtype("O")), None),
    ],
)
def test_nothing_in_a_batch_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Harm, asked: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch").write_bytes(pickle.dumps({b"data": harm, b"labels": []}, protocol=3))
    reason = f"(it asks for {asked}, which no batch of images needs)" if asked else "("
    sentence = f"{tmp_path / 'batch'} must be a CIFAR-10 batch, got an error {reason}"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read_batch(tmp_path / "batch")
    assert not (tmp_path / "harmed").exists()


@each(
    ("data", "sentence"),
    [
        (b"", "be a CIFAR-10 batch, got an error (EOFError"),
        (b"no pickle", "be a CIFAR-10 batch, got an error ("),
        (by_python_2(pixels(2), [1, 2])[:-2000], "be a CIFAR-10 batch, got an error (pickle data was truncated"),
        (pickle.dumps([1, 2]), "be a CIFAR-10 batch, got an error (it holds a list, not a dictionary)"),
        (by_python_3(pixels(2).astype(np.int16), [1, 2]), "an array in it is not of unsigned bytes)"),
        (by_python_3(np.asfortranarray(pixels(2)), [1, 2]), "where its shape is (2, 3072))"),
        (pickle.dumps({b"labels": [1]}), "hold images of 3072 bytes under data, got NoneType"),
        (by_python_3(pixels(2)[:, :3000], [1, 2]), "hold images of 3072 bytes under data, got (2, 3000)"),
        (by_python_3(pixels(2), [1]), "hold a label for each of 2 images, got 1"),
        (by_python_3(pixels(2), [1, 10]), "hold labels in [0, 9] under labels, got something else"),
    ],
)
def test_a_damaged_batch_is_named(tmp_path: Path, data: bytes, sentence: str) -> None:
    write(tmp_path / "cifar10")
    path = tmp_path / "cifar10" / "data_batch_3"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        DATASETS["cifar10"].load(Wanted(tmp_path, ImageShape(3, 32)))
    assert str(caught.value).startswith(f"{path} must ")


def test_an_array_whose_state_lies_is_refused() -> None:
    lie = by_python_2(pixels(2), [1, 2]).replace(b"K\x02M\x00\x0c\x86", b"K\x03M\x00\x0c\x86")
    with pytest.raises(pickle.UnpicklingError, match=r"holds 6144 bytes where its shape is \(3, 3072\)"):
        read_pickled_arrays(lie)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    write(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "data_batch_5").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"data_dir must hold cifar10, got .* without .* Get cifar-10-python.tar"
    ):
        DATASETS["cifar10"].load(Wanted(tmp_path))
