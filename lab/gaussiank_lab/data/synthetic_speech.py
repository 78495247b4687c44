"""Stand-in for speech: every character sounds as its own band of noise, eight frames long."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gaussiank_lab.data.source import DataSource, Wanted, digest_of
from gaussiank_lab.data.speech_set import BINS, CHARACTERS, SpeechSet
from gaussiank_lab.data.split import Data
from gaussiank_lab.tasks import SpeechRecognition

TRAIN, TEST = 512, 64
FRAMES_EACH = 8
SHORTEST, LONGEST = 4, 10
GET = "It is made on the spot; for recorded speech give --dataset an4."


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
        generator = torch.Generator().manual_seed(self._seed * TRAIN + number)
        return 0.7 * (clear + torch.randn(clear.shape, generator=generator)), spoken


def _find(data_dir: Path | None) -> Path:
    return Path(__file__)


def _load(wanted: Wanted) -> Data:
    train, test = SyntheticSpeech(TRAIN, seed=1), SyntheticSpeech(TEST, seed=2)
    digest = digest_of([*train.spoken, *test.spoken])
    return Data(SpeechRecognition(), train, test, len(CHARACTERS), digest)


SYNTHETIC_SPEECH = DataSource(
    "synthetic-speech", "speech", "stand-in: spectrograms of random characters", GET, _find, _load
)
