from __future__ import annotations

import gzip
import hashlib
import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.each import each

from gaussiank_lab.cli.data import show_data
from gaussiank_lab.data import DATASETS
from gaussiank_lab.data import image_files as download
from gaussiank_lab.data import image_files as idx


def shown(name: str | None = None, data_dir: Path | None = None, download: bool = False) -> str:
    out = io.StringIO()
    show_data(Console(file=out, width=80), name, data_dir, download)
    return out.getvalue()


@pytest.fixture(autouse=True)
def _not_debians(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "debian")


def test_all_are_listed_with_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("words")
    text = shown(data_dir=tmp_path)
    state = dict(re.findall(r"^  (here|missing) +(\S+):", text, re.MULTILINE)[i][::-1] for i in range(len(DATASETS)))
    assert state == {
        name: "here"
        if name in ("fashion-mnist-subset", "synthetic-images", "stdlib", "text", "synthetic-speech")
        else "missing"
        for name in DATASETS
    }
    for name, source in DATASETS.items():
        assert (source.get in text) == (state[name] == "missing")
    assert f"text: any text by bytes, its end held out as test ({tmp_path})" in text


def test_a_terminal_gets_no_line_that_is_wider_than_it(tmp_path: Path) -> None:
    out = io.StringIO()
    show_data(Console(file=out, width=80, force_terminal=True, color_system=None), None, None, False)
    lines = out.getvalue().splitlines()
    first = next(number for number, line in enumerate(lines) if "Get cifar-10-python" in line)
    assert lines[first + 1].startswith(11 * " ")
    assert all(len(line) < 80 for line in lines[first : first + 2])


def test_one_is_read_whole_and_described(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_bytes(b"abcd" * 2600)
    text = shown("text", tmp_path)
    for part in (
        "train    77 windows",
        "test     4 windows",
        "outputs  256",
        "judged   by loss in nats/byte",
        "digest   ",
    ):
        assert part in text


def test_a_damaged_file_that_is_read_when_dealt_is_named(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "x").mkdir(parents=True)
        (tmp_path / part / "x" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'train' / 'x' / '1.png'} must be a whole image, got")):
        shown("imagefolder", tmp_path)


def test_download_fetches_and_describes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "server"
    server.mkdir()
    released = {}
    for name in idx.FILES:
        array = np.zeros((20, 28, 28) if "images" in name else 20, np.uint8)
        data = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
        released[name] = hashlib.sha256(data).hexdigest()
        (server / f"{name}.gz").write_bytes(gzip.compress(data))
    monkeypatch.setattr(download, "FASHION_SHA256", released)
    monkeypatch.setattr(download.download_fashion_mnist, "__defaults__", (f"{server.as_uri()}/",))
    text = shown("fashion-mnist", tmp_path / "data", download=True)
    assert f"Fetched into {tmp_path / 'data' / 'fashion-mnist'}." in text
    assert "train    20 images" in text


@each(
    ("name", "folder", "fetch", "sentence"),
    [
        ("cifar", "x", False, r"name must be one of fashion-mnist-subset, .*, got 'cifar'\. Correct it\."),
        ("mnist", "x", True, r"download must be of fashion-mnist, got mnist\. Get the four idx files"),
        (None, "x", True, r"download must be of fashion-mnist, got no name\. Give it as the name\."),
        ("fashion-mnist", None, True, r"data_dir must be given with download, got none\. Add --data-dir DIR\."),
    ],
)
def test_wrong_requests_get_one_sentence(name: str | None, folder: str | None, fetch: bool, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        shown(name, None if folder is None else Path(folder), fetch)
