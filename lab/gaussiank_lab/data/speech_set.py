"""Utterances as spectrograms, padded to the longest of a batch."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gaussiank_lab.data.split import Batch, Split

CHARACTERS = "_'ABCDEFGHIJKLMNOPQRSTUVWXYZ "
"""What is told apart; the first stands for no character at all (CTC's blank)."""
SAMPLE_RATE_HZ = 16_000
WINDOW, HOP = 320, 160  # samples: 20 ms, every 10 ms
BINS = WINDOW // 2 + 1


class SpeechSet(Split):
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
