"""Texts by bytes and by words, on small files."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import pytest
import torch
from tests.each import each

from gaussiank_lab.data import DATASETS, TokenSet, Wanted
from gaussiank_lab.data.text import source_files


def tokens_of(split: object) -> list[int]:
    assert isinstance(split, TokenSet)
    return split.tokens.tolist()


def test_windows_cover_the_text_and_look_one_token_ahead() -> None:
    data = TokenSet(torch.arange(100, 121, dtype=torch.uint8), context=5)
    assert len(data) == 4
    batch = data.batch(torch.tensor([3, 0]))
    assert batch.inputs[0].tolist() == [[115, 116, 117, 118, 119], [100, 101, 102, 103, 104]]
    assert batch.targets[0].tolist() == [[116, 117, 118, 119, 120], [101, 102, 103, 104, 105]]
    assert batch.inputs[0].dtype == torch.int64


def test_a_window_must_fit_the_text() -> None:
    with pytest.raises(
        ValueError, match=r"context must be in \[1, 9\] for a text of 10 tokens, got 10\. Give a shorter"
    ):
        TokenSet(torch.arange(10), context=10)


# ---------------------------------------------------------------------- Python's own text


def test_the_standard_library_is_the_default_text() -> None:
    data = DATASETS["stdlib"].load(Wanted(context=64))
    text = bytes(tokens_of(data.train))
    assert data.outputs == 256
    assert b"def " in text
    assert len(text) > 2_000_000
    assert len(tokens_of(data.test)) == 65_536
    assert data.task.metric.unit == "nats/byte"
    assert data.digest == DATASETS["stdlib"].load(Wanted(context=8)).digest  # of the text, not of its windows


def test_its_files_are_in_order_and_without_what_distributions_change() -> None:
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = [path.relative_to(folder).as_posix() for path in source_files(folder)]
    assert names == sorted(names)
    assert "json/decoder.py" in names
    assert not [name for name in names if re.search(r"site-packages|(^|/)tests?/|_sysconfigdata", name)]


def test_an_installation_without_source_text_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(
        FileNotFoundError, match=r"the standard library must lie in files, got .* needs --dataset text\."
    ):
        DATASETS["stdlib"].load(Wanted())


# ---------------------------------------------------------------------- any text


def test_a_file_is_a_text_by_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    (tmp_path / "notes.log").write_bytes(content)
    data = DATASETS["text"].load(Wanted(tmp_path / "notes.log", context=16))
    train, test = tokens_of(data.train), tokens_of(data.test)
    assert bytes(train + test) == content
    assert len(test) == 512  # a twentieth


def test_a_folder_is_its_txt_files_in_order(tmp_path: Path) -> None:
    for name, letter in (("b.txt", b"b"), ("a.txt", b"a"), ("c.md", b"c")):
        (tmp_path / name).write_bytes(letter * 300)
    data = DATASETS["text"].load(Wanted(tmp_path, context=8))
    assert bytes(tokens_of(data.train) + tokens_of(data.test)) == b"a" * 300 + b"\n" + b"b" * 300


def test_a_text_that_is_missing_or_too_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"data_dir must be a text or hold some, got .* without \.txt files\. Give"
    ):
        DATASETS["text"].load(Wanted(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"data_dir must be a text or hold some, got no --data-dir\."):
        DATASETS["text"].load(Wanted(None))
    (tmp_path / "short.txt").write_text("x" * 100)
    with pytest.raises(ValueError, match=r"must hold 180 bytes at least, 20 windows, got 100\. Give a longer text"):
        DATASETS["text"].load(Wanted(tmp_path, context=8))


# ---------------------------------------------------------------------- Penn Treebank


def write_ptb(place: Path, train: str, test: str = " the cat <unk> \n") -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "ptb.train.txt").write_text(train, encoding="utf-8")
    (place / "ptb.test.txt").write_text(test, encoding="utf-8")


@each("folder", ["", "ptb", "simple-examples/data"])
def test_words_are_numbered_by_their_frequency(tmp_path: Path, folder: str) -> None:
    write_ptb(tmp_path / folder, " the cat the dog <unk> \n the N \n the N \n")
    data = DATASETS["ptb"].load(Wanted(tmp_path, context=2))
    # the 4, <eos> 3, N 2, then <unk>, cat, dog
    assert tokens_of(data.train) == [0, 4, 0, 5, 3, 1, 0, 2, 1, 0, 2, 1]
    assert tokens_of(data.test) == [0, 4, 3, 1]
    assert data.outputs == 6
    assert data.task.metric.unit == "nats/word"


def test_a_word_that_training_lacks_is_unknown_or_named(tmp_path: Path) -> None:
    write_ptb(tmp_path, "a b <unk> c\n" * 3, "a bird c\n")
    assert tokens_of(DATASETS["ptb"].load(Wanted(tmp_path, context=2)).test) == [2, 1, 4, 0]
    write_ptb(tmp_path, "a b c\n" * 3, "a bird c\n")
    with pytest.raises(ValueError, match=r"ptb\.test\.txt must hold words of ptb\.train\.txt alone .* got 'bird'\."):
        DATASETS["ptb"].load(Wanted(tmp_path, context=2))


def test_damaged_or_missing_words_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"data_dir must hold ptb, got .* without ptb\.train\.txt\. Get ptb\.train"
    ):
        DATASETS["ptb"].load(Wanted(tmp_path))
    write_ptb(tmp_path, "")
    with pytest.raises(ValueError, match=r"ptb\.train\.txt must hold words, got none\."):
        DATASETS["ptb"].load(Wanted(tmp_path))
    (tmp_path / "ptb.train.txt").write_bytes(b"caf\xe9 \n")
    with pytest.raises(ValueError, match=r"ptb\.train\.txt must be text in UTF-8, got an error \('utf-8' codec can't"):
        DATASETS["ptb"].load(Wanted(tmp_path))
