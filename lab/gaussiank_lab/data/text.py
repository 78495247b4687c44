"""Text for language models: of bytes, of the Penn Treebank's words, and of Python's own library."""

from __future__ import annotations

import os
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gaussiank_lab.data.source import (
    Batch,
    Data,
    DataSource,
    DataSplit,
    Wanted,
    damaged,
    digest_of,
    folders,
    locate,
    reading,
)
from gaussiank_lab.tasks import LanguageModelling


@dataclass(frozen=True, eq=False)
class TokenSet(DataSplit):
    """Hold a text, and cut it into windows that do not overlap.

    Args:
        tokens: uint8 or int32 ``[n]``.
        context: tokens in a window; the one after each is its target.
    """

    tokens: Tensor
    context: int
    unit = "windows"

    def __post_init__(self) -> None:
        if len(self) < 1:
            raise ValueError(
                f"context must be in [1, {max(1, len(self.tokens) - 1)}] for a text of {len(self.tokens)} tokens, "
                f"got {self.context}. Give a shorter one, or a longer text."
            )

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def batch(self, chosen: Tensor) -> Batch:
        """Collect windows int64 ``[b, context]``, and the same one token later.

        Example:
            >>> windows = TokenSet(torch.arange(7), context=3).batch(torch.tensor([1]))
            >>> windows.inputs[0].tolist(), windows.targets[0].tolist()
            ([[3, 4, 5]], [[4, 5, 6]])
        """
        places = chosen[:, None] * self.context + torch.arange(self.context + 1)
        tokens = self.tokens[places].long()
        return Batch((tokens[:, :-1],), (tokens[:, 1:],))


TEST_SHARE, MAX_TEST_BYTES = 0.05, 65_536
_GET_TEXT = "Give --data-dir FILE.txt, or a folder of .txt files."


def byte_data(train: bytes, test: bytes, context: int) -> Data:
    """Make a data set of two texts, to be modelled byte by byte."""
    tokens = [torch.from_numpy(np.frombuffer(part, np.uint8).copy()) for part in (train, test)]
    sets = [TokenSet(part, context) for part in tokens]
    return Data(LanguageModelling("byte"), sets[0], sets[1], 256, digest_of(tokens))


def _find_text(data_dir: Path | None) -> Path:
    if data_dir is not None and data_dir.is_file():
        return data_dir
    for place in folders(data_dir, "text"):
        if place.is_dir() and any(place.glob("*.txt")):
            return place
    got = "no --data-dir" if data_dir is None else f"{data_dir} without .txt files"
    raise FileNotFoundError(f"data_dir must be a text or hold some, got {got}. {_GET_TEXT}")


def _load_text(wanted: Wanted) -> Data:
    place = _find_text(wanted.data_dir)
    parts = []
    for path in [place] if place.is_file() else sorted(place.glob("*.txt")):
        with reading(path, "be readable", OSError, advice=_GET_TEXT):
            parts.append(path.read_bytes())
    text = b"\n".join(parts)
    if len(text) < 20 * (wanted.context + 1):
        rule = f"hold {20 * (wanted.context + 1)} bytes at least, 20 windows"
        raise damaged(place, rule, len(text), "Give a longer text, or a smaller --context.")
    held_out = max(wanted.context + 1, min(MAX_TEST_BYTES, int(TEST_SHARE * len(text))))
    return byte_data(text[:-held_out], text[-held_out:], wanted.context)


TEXT = DataSource("text", "language", "any text by bytes, its end held out as test", _GET_TEXT, _find_text, _load_text)


END, UNKNOWN = "<eos>", "<unk>"
FILES = ("ptb.train.txt", "ptb.test.txt")
_GET_PTB = (
    "Get ptb.train.txt and ptb.test.txt (simple-examples.tgz of T. Mikolov), put them into DIR and give --data-dir DIR."
)


def read_words(path: Path) -> list[str]:
    """Read the words of a file, with ``<eos>`` at the end of each line; a damaged file is named."""
    with reading(path, "be text in UTF-8", OSError, UnicodeDecodeError):
        text = path.read_text(encoding="utf-8")
    words = [word for line in text.splitlines() for word in (*line.split(), END)]
    if not words:
        raise damaged(path, "hold words", "none")
    return words


def _numbers(path: Path, words: list[str], vocabulary: dict[str, int]) -> Tensor:
    unknown = vocabulary.get(UNKNOWN)
    if unknown is None:
        stranger = next((word for word in words if word not in vocabulary), None)
        if stranger is not None:
            raise damaged(path, f"hold words of {FILES[0]} alone where that has no {UNKNOWN}", repr(stranger))
    return torch.tensor([vocabulary.get(word, unknown or 0) for word in words], dtype=torch.int32)


def _find_ptb(data_dir: Path | None) -> Path:
    return locate("ptb", folders(data_dir, "ptb", "simple-examples/data"), FILES, _GET_PTB)


def _load_ptb(wanted: Wanted) -> Data:
    paths = [_find_ptb(wanted.data_dir) / name for name in FILES]
    texts = [read_words(path) for path in paths]
    # the commonest first; those as common in the order of the alphabet
    ordered = sorted(Counter(texts[0]).items(), key=lambda item: (-item[1], item[0]))
    vocabulary = {word: number for number, (word, _) in enumerate(ordered)}
    tokens = [_numbers(path, words, vocabulary) for path, words in zip(paths, texts, strict=True)]
    train, test = (TokenSet(part, wanted.context) for part in tokens)
    return Data(LanguageModelling("word"), train, test, len(vocabulary), digest_of(tokens))


PTB = DataSource("ptb", "language", "Penn Treebank, 10,000 different words", _GET_PTB, _find_ptb, _load_ptb)


# what a distribution may leave out or add, and tables that are no program
LEFT_OUT = frozenset(
    [
        *("site-packages", "dist-packages", "lib-dynload", "__pycache__", "ensurepip", "test", "tests", "__phello__"),
        *("idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "encodings", "pydoc_data", "config"),
    ]
)
EVERY_HELD_OUT = 20
_GET_STDLIB = "It comes with Python; an installation without source text needs --dataset text."


def source_files(folder: Path) -> list[Path]:
    """Return the files of the text, in the order of their names."""
    found: list[Path] = []
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if name not in LEFT_OUT]  # os.walk goes only where this says
        # what a build or a distribution writes about the machine is no text of the library
        ours = [n for n in names if n.endswith(".py") and not n.startswith(("_sysconfigdata", "sitecustomize"))]
        found += [Path(place, name) for name in ours]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _find_stdlib(data_dir: Path | None) -> Path:
    folder = Path(sysconfig.get_paths()["stdlib"])
    if len(source_files(folder)) < 2 * EVERY_HELD_OUT:
        raise FileNotFoundError(f"the standard library must lie in files, got {folder} without them. {_GET_STDLIB}")
    return folder


def _load_stdlib(wanted: Wanted) -> Data:
    folder = _find_stdlib(None)
    train: list[bytes] = []
    test: list[bytes] = []
    for number, path in enumerate(source_files(folder)):
        with reading(path, "be readable", OSError, advice=_GET_STDLIB):
            (test if number % EVERY_HELD_OUT == EVERY_HELD_OUT - 1 else train).append(path.read_bytes())
    return byte_data(b"\n".join(train), b"\n".join(test)[:MAX_TEST_BYTES], wanted.context)


STDLIB = DataSource(
    "stdlib",
    "language",
    "source text of Python's standard library by bytes; varies with its version",
    _GET_STDLIB,
    _find_stdlib,
    _load_stdlib,
)
