"""Speech: AN4 from its manifests, and made-up utterances."""

from __future__ import annotations

import csv
import wave
from abc import abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gaussiank_lab.data.source import (
    Batch,
    Data,
    DataSource,
    DataSplit,
    Wanted,
    damaged,
    digest_of,
    digest_of_files,
    folders,
    locate,
    reading,
)
from gaussiank_lab.tasks import SpeechRecognition

CHARACTERS = "_'ABCDEFGHIJKLMNOPQRSTUVWXYZ "
"""What is told apart; the first stands for no character at all (CTC's blank)."""
SAMPLE_RATE_HZ = 16_000
WINDOW, HOP = 320, 160  # samples: 20 ms, every 10 ms
BINS = WINDOW // 2 + 1


class SpeechSet(DataSplit):
    """Hand out utterances; where they come from is the business of its kinds."""

    unit = "utterances"

    @abstractmethod
    def utterance(self, number: int) -> tuple[Tensor, Tensor]:
        """Return a spectrogram float32 ``[BINS, frames]``, and its characters int64 ``[n]``."""

    def batch(self, chosen: Tensor) -> Batch:
        """Collect spectrograms float32 ``[b, BINS, frames]``, padded with 0, and characters int64 ``[b, longest]``.

        Frames and numbers of characters, int64 ``[b]``, stand beside them.
        """
        pairs = [self.utterance(number) for number in chosen.tolist()]
        frames = torch.tensor([spectrogram.shape[1] for spectrogram, _ in pairs])
        lengths = torch.tensor([len(spoken) for _, spoken in pairs])
        padded = pad_sequence([spectrogram.T for spectrogram, _ in pairs], batch_first=True).transpose(1, 2)
        spoken = pad_sequence([spoken for _, spoken in pairs], batch_first=True)
        return Batch((padded, frames), (spoken, lengths))


def spectrogram(samples: Tensor) -> Tensor:
    """Return the logarithm of a sound's short-time spectrum, with mean 0 and deviation 1.

    Args:
        samples: float32 ``[n]`` at 16 kHz, in [-1, 1].

    Returns:
        float32 ``[BINS, frames]``, a frame every 10 ms.

    Source: Amodei et al. 2016, "Deep Speech 2", section 3.1 (spectrograms of power-normalised audio).

    Example:
        >>> spectrogram(torch.zeros(16_000)).shape
        torch.Size([161, 101])
    """
    window = torch.hamming_window(WINDOW, periodic=False)
    spectrum = torch.stft(samples, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)
    loudness = torch.log1p(spectrum.abs())
    return (loudness - loudness.mean()) / loudness.std().clamp_min(1e-6)


_TRAIN_MANIFEST, _TEST_MANIFEST = "*train_manifest.csv", "*val_manifest.csv"
_GET_AN4 = (
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
        with reading(manifest, "be a csv file in UTF-8", OSError, UnicodeDecodeError, csv.Error, advice=_GET_AN4):
            lines = manifest.read_text(encoding="utf-8").splitlines()
            rows = [(line, row) for line, row in enumerate(csv.reader(lines), 1) if row]
        for line, row in rows:
            if len(row) < 2:
                raise damaged(manifest, f"name a wav and a text file in line {line}", repr(",".join(row)), _GET_AN4)
            sound, text = (manifest.parent / name.strip() for name in row[:2])
            for path in (sound, text):
                if not path.is_file():
                    raise FileNotFoundError(f"{path} must exist, since line {line} of {manifest} names it. {_GET_AN4}")
            self.files.append((sound, text))
        if not self.files:
            raise damaged(manifest, "name utterances", "none", _GET_AN4)

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


def _find_an4(data_dir: Path | None) -> Path:
    return locate("an4", folders(data_dir, "an4"), (_TRAIN_MANIFEST, _TEST_MANIFEST), _GET_AN4)


def _load_an4(wanted: Wanted) -> Data:
    place = _find_an4(wanted.data_dir)
    train, test = (RecordedSpeech(sorted(place.glob(pattern))[0]) for pattern in (_TRAIN_MANIFEST, _TEST_MANIFEST))
    digest = digest_of_files(path for pair in (*train.files, *test.files) for path in pair)
    return Data(SpeechRecognition(), train, test, len(CHARACTERS), digest)


AN4 = DataSource("an4", "speech", "recorded speech in AN4-style manifests", _GET_AN4, _find_an4, _load_an4)


_UTTERANCES, _TEST_UTTERANCES = 512, 64
FRAMES_EACH = 8
SHORTEST, LONGEST = 4, 10
_GET_SYNTHETIC = "It is made on the spot; for recorded speech give --dataset an4."


class SyntheticSpeech(SpeechSet):
    """Make utterances of random characters, the same for the same seed.

    Args:
        count: utterances.
        seed: what they are drawn from; the sound of a character is the same for every seed.
    """

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=generator).tolist()
        self.spoken = [torch.randint(1, len(CHARACTERS), (length,), generator=generator) for length in lengths]
        self._seed = seed
        self._sounds = torch.randn(len(CHARACTERS), BINS, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.spoken)

    def utterance(self, number: int) -> tuple[Tensor, Tensor]:
        """Make an utterance, half sound and half noise."""
        spoken = self.spoken[number]
        clear = self._sounds[spoken].T.repeat_interleave(FRAMES_EACH, dim=1)
        generator = torch.Generator().manual_seed(self._seed * _UTTERANCES + number)
        return 0.7 * (clear + torch.randn(clear.shape, generator=generator)), spoken


def _find_synthetic(data_dir: Path | None) -> Path:
    return Path(__file__)


def _load_synthetic(wanted: Wanted) -> Data:
    train, test = SyntheticSpeech(_UTTERANCES, seed=1), SyntheticSpeech(_TEST_UTTERANCES, seed=2)
    digest = digest_of([*train.spoken, *test.spoken])
    return Data(SpeechRecognition(), train, test, len(CHARACTERS), digest)


SYNTHETIC_SPEECH = DataSource(
    "synthetic-speech",
    "speech",
    "stand-in: spectrograms of random characters",
    _GET_SYNTHETIC,
    _find_synthetic,
    _load_synthetic,
)
