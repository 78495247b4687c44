"""Any text by bytes: a file, or all .txt files of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gaussiank_lab.data.damage import damaged, reading
from gaussiank_lab.data.source import DataSource, Wanted, digest_of, folders
from gaussiank_lab.data.split import Data
from gaussiank_lab.data.token_set import TokenSet
from gaussiank_lab.tasks import LanguageModelling

TEST_SHARE, MAX_TEST_BYTES = 0.05, 65_536
GET = "Give --data-dir FILE.txt, or a folder of .txt files."


def byte_data(train: bytes, test: bytes, context: int) -> Data:
    """Make a data set of two texts, to be modelled byte by byte."""
    tokens = [torch.from_numpy(np.frombuffer(part, np.uint8).copy()) for part in (train, test)]
    sets = [TokenSet(part, context) for part in tokens]
    return Data(LanguageModelling("byte"), sets[0], sets[1], 256, digest_of(tokens))


def _find(data_dir: Path | None) -> Path:
    if data_dir is not None and data_dir.is_file():
        return data_dir
    for place in folders(data_dir, "text"):
        if place.is_dir() and any(place.glob("*.txt")):
            return place
    got = "no --data-dir" if data_dir is None else f"{data_dir} without .txt files"
    raise FileNotFoundError(f"data_dir must be a text or hold some, got {got}. {GET}")


def _load(wanted: Wanted) -> Data:
    place = _find(wanted.data_dir)
    parts = []
    for path in [place] if place.is_file() else sorted(place.glob("*.txt")):
        with reading(path, "be readable", OSError, advice=GET):
            parts.append(path.read_bytes())
    text = b"\n".join(parts)
    if len(text) < 20 * (wanted.context + 1):
        rule = f"hold {20 * (wanted.context + 1)} bytes at least, 20 windows"
        raise damaged(place, rule, len(text), "Give a longer text, or a smaller --context.")
    held_out = max(wanted.context + 1, min(MAX_TEST_BYTES, int(TEST_SHARE * len(text))))
    return byte_data(text[:-held_out], text[-held_out:], wanted.context)


TEXT = DataSource("text", "language", "any text by bytes, its end held out as test", GET, _find, _load)
