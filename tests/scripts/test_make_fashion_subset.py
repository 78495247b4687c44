from __future__ import annotations

import gzip
import importlib.util
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/make_fashion_subset.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_fashion_subset", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for part, n in (("train", 60), ("t10k", 20)):
        images = np.arange(n * 784, dtype=np.int64).astype(np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for name, shape, data in (("images-idx3", (n, 28, 28), images), ("labels-idx1", (n,), labels)):
            header = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
            (tmp_path / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(header + data.tobytes()))
    return tmp_path


def test_subset_is_balanced_unchanged_and_the_same_bytes_each_time(script: ModuleType, source: Path) -> None:
    once, again = source / "once.npz", source / "again.npz"
    script.make(source, once, {"train": 30, "t10k": 10})
    script.make(source, again, {"train": 30, "t10k": 10})
    assert once.read_bytes() == again.read_bytes()
    with np.load(once) as arrays:
        assert np.bincount(arrays["train_labels"]).tolist() == [3] * 10
        assert np.bincount(arrays["test_labels"]).tolist() == [1] * 10
        whole = {image.tobytes() for image in np.arange(60 * 784).astype(np.uint8).reshape(60, 28, 28)}
        assert all(image.tobytes() in whole for image in arrays["train_images"])


def test_damaged_files_are_named(script: ModuleType, source: Path) -> None:
    file = source / "train-images-idx3-ubyte.gz"
    good = file.read_bytes()
    for damaged, sentence in (
        (good[:-20], "must be a whole gzip file"),
        (b"nothing zipped", "must be a whole gzip file"),
        (gzip.compress(b"\0\0\0\0" + gzip.decompress(good)[4:]), "must begin with the idx magic number 2051"),
        (gzip.compress(gzip.decompress(good)[:-1]), "must hold 47040 bytes after its header, got 47039"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(SystemExit, match=f"train-images-idx3-ubyte.gz {sentence}"):
            script.make(source, source / "out.npz", {"train": 30, "t10k": 10})
