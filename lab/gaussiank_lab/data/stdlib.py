"""The source text of Python's own standard library, by bytes: a text that every machine has."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from gaussiank_lab.data.damage import reading
from gaussiank_lab.data.source import DataSource, Wanted
from gaussiank_lab.data.split import Data
from gaussiank_lab.data.text import MAX_TEST_BYTES, byte_data

# what a distribution may leave out or add, and tables that are no program
LEFT_OUT = frozenset(
    [
        *("site-packages", "dist-packages", "lib-dynload", "__pycache__", "ensurepip", "test", "tests", "__phello__"),
        *("idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "encodings", "pydoc_data", "config"),
    ]
)
EVERY_HELD_OUT = 20
GET = "It comes with Python; an installation without source text needs --dataset text."


def source_files(folder: Path) -> list[Path]:
    """Return the files of the text, in the order of their names."""
    found: list[Path] = []
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if name not in LEFT_OUT]  # os.walk goes only where this says
        # what a build or a distribution writes about the machine is no text of the library
        ours = [n for n in names if n.endswith(".py") and not n.startswith(("_sysconfigdata", "sitecustomize"))]
        found += [Path(place, name) for name in ours]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _find(data_dir: Path | None) -> Path:
    folder = Path(sysconfig.get_paths()["stdlib"])
    if len(source_files(folder)) < 2 * EVERY_HELD_OUT:
        raise FileNotFoundError(f"the standard library must lie in files, got {folder} without them. {GET}")
    return folder


def _load(wanted: Wanted) -> Data:
    folder = _find(None)
    train: list[bytes] = []
    test: list[bytes] = []
    for number, path in enumerate(source_files(folder)):
        with reading(path, "be readable", OSError, advice=GET):
            (test if number % EVERY_HELD_OUT == EVERY_HELD_OUT - 1 else train).append(path.read_bytes())
    return byte_data(b"\n".join(train), b"\n".join(test)[:MAX_TEST_BYTES], wanted.context)


STDLIB = DataSource(
    "stdlib",
    "language",
    "source text of Python's standard library by bytes; varies with its version",
    GET,
    _find,
    _load,
)
