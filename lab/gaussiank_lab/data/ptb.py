"""Penn Treebank as prepared by Mikolov: words, one sentence a line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from gaussiank_lab.data.damage import damaged, reading
from gaussiank_lab.data.source import DataSource, Wanted, digest_of, folders, locate
from gaussiank_lab.data.split import Data
from gaussiank_lab.data.token_set import TokenSet
from gaussiank_lab.tasks import LanguageModelling

END, UNKNOWN = "<eos>", "<unk>"
FILES = ("ptb.train.txt", "ptb.test.txt")
GET = (
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


def _find(data_dir: Path | None) -> Path:
    return locate("ptb", folders(data_dir, "ptb", "simple-examples/data"), FILES, GET)


def _load(wanted: Wanted) -> Data:
    paths = [_find(wanted.data_dir) / name for name in FILES]
    texts = [read_words(path) for path in paths]
    # the commonest first; those as common in the order of the alphabet
    ordered = sorted(Counter(texts[0]).items(), key=lambda item: (-item[1], item[0]))
    vocabulary = {word: number for number, (word, _) in enumerate(ordered)}
    tokens = [_numbers(path, words, vocabulary) for path, words in zip(paths, texts, strict=True)]
    train, test = (TokenSet(part, wanted.context) for part in tokens)
    return Data(LanguageModelling("word"), train, test, len(vocabulary), digest_of(tokens))


PTB = DataSource("ptb", "language", "Penn Treebank, 10,000 different words", GET, _find, _load)
