"""Recorded speech listed in manifests, as AN4 is usually prepared: lines of a wav file and a text file."""

from __future__ import annotations

import csv
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gaussiank_lab.data.damage import damaged, reading
from gaussiank_lab.data.source import DataSource, Wanted, digest_of_files, folders, locate
from gaussiank_lab.data.speech_set import CHARACTERS, SAMPLE_RATE_HZ, SpeechSet, spectrogram
from gaussiank_lab.data.split import Data
from gaussiank_lab.tasks import SpeechRecognition

TRAIN, TEST = "*train_manifest.csv", "*val_manifest.csv"
GET = (
    "Put an4_train_manifest.csv and an4_val_manifest.csv, with a line WAV,TXT for each utterance, and the files that "
    "they name (16 kHz, 16 bit, mono) into DIR and give --data-dir DIR."
)
_NUMBERS = {character: number for number, character in enumerate(CHARACTERS) if number}


class RecordedSpeech(SpeechSet):
    """Read utterances from files when they are dealt.

    Args:
        manifest: csv file; paths in it are absolute, or start from its folder.

    Raises:
        ValueError: the manifest is damaged; names it and the line.
        FileNotFoundError: it names a file that is not there.
    """

    def __init__(self, manifest: Path) -> None:
        self.files: list[tuple[Path, Path]] = []
        with reading(manifest, "be a csv file in UTF-8", OSError, UnicodeDecodeError, csv.Error, advice=GET):
            lines = manifest.read_text(encoding="utf-8").splitlines()
            rows = [(line, row) for line, row in enumerate(csv.reader(lines), 1) if row]
        for line, row in rows:
            if len(row) < 2:
                raise damaged(manifest, f"name a wav and a text file in line {line}", repr(",".join(row)), GET)
            sound, text = (manifest.parent / name.strip() for name in row[:2])
            for path in (sound, text):
                if not path.is_file():
                    raise FileNotFoundError(f"{path} must exist, since line {line} of {manifest} names it. {GET}")
            self.files.append((sound, text))
        if not self.files:
            raise damaged(manifest, "name utterances", "none", GET)

    def __len__(self) -> int:
        return len(self.files)

    def utterance(self, number: int) -> tuple[Tensor, Tensor]:
        """Read a sound and its transcript; a damaged file is named."""
        sound, text = self.files[number]
        return spectrogram(read_wav(sound)), read_transcript(text)


def read_wav(path: Path) -> Tensor:
    """Read a wav file of 16 kHz, 16 bit and one channel: float32 ``[n]`` in [-1, 1].

    Raises:
        ValueError: it is damaged, or of another kind; names it.
    """
    with reading(path, "be a whole wav file", OSError, EOFError, wave.Error), wave.open(str(path), "rb") as opened:
        kind = opened.getframerate(), 8 * opened.getsampwidth(), opened.getnchannels()
        frames = opened.getnframes()
        data = opened.readframes(frames)
    if kind != (SAMPLE_RATE_HZ, 16, 1):
        got = "{} Hz, {} bit, {} channels".format(*kind)
        raise damaged(path, "be of 16000 Hz, 16 bit, 1 channel", got, "Convert it.")
    if not data or len(data) != 2 * frames:
        raise damaged(path, f"hold {frames} samples, and one at least", len(data) // 2)
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32768)


def read_transcript(path: Path) -> Tensor:
    """Read what is spoken: int64 ``[n]``, numbers of ``CHARACTERS``.

    Raises:
        ValueError: it holds another character, or none; names the file.
    """
    with reading(path, "be text in UTF-8", OSError, UnicodeDecodeError):
        text = " ".join(path.read_text(encoding="utf-8").upper().split())
    strange = sorted(set(text) - _NUMBERS.keys())
    if strange or not text:
        got = repr(strange[0]) if strange else "none"
        raise damaged(path, "hold letters, spaces and apostrophes", got, "Write it in words.")
    return torch.tensor([_NUMBERS[character] for character in text])


def _find(data_dir: Path | None) -> Path:
    return locate("an4", folders(data_dir, "an4"), (TRAIN, TEST), GET)


def _load(wanted: Wanted) -> Data:
    place = _find(wanted.data_dir)
    train, test = (RecordedSpeech(sorted(place.glob(pattern))[0]) for pattern in (TRAIN, TEST))
    digest = digest_of_files(path for pair in (*train.files, *test.files) for path in pair)
    return Data(SpeechRecognition(), train, test, len(CHARACTERS), digest)


AN4 = DataSource("an4", "speech", "recorded speech in AN4-style manifests", GET, _find, _load)
