"""LSTM-AN4: two convolutions and five LSTM layers of 800 on spectrograms, trained with CTC."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from gaussiank_lab.data.speech_set import BINS

from .model_spec import ModelSpec

_Length = TypeVar("_Length", int, Tensor)


class SpeechModel(nn.Module):
    """Turn spectrograms into log-probabilities of characters.

    Args:
        characters: to tell apart, the blank among them.
        width: of every LSTM layer.
        layers: how many.
        ahead: frames that the last layer sees of what comes.

    Source: Amodei et al. 2016, "Deep Speech 2": two-dimensional convolutions, batch normalisation between recurrent
    layers in one direction, and a row convolution that looks ahead. Differs: frames of padding pass through the model
    too, as zeros.
    """

    def __init__(self, characters: int, width: int, layers: int, ahead: int = 20) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(1, 32, (41, 11), (2, 2), (20, 5)), nn.BatchNorm2d(32), nn.Hardtanh(0, 20)),
            *(nn.Conv2d(32, 32, (21, 11), (2, 1), (10, 5)), nn.BatchNorm2d(32), nn.Hardtanh(0, 20)),
        )
        inward = 32 * _halved(_halved(BINS))
        self.recurrent = nn.ModuleList(
            nn.LSTM(width if layer else inward, width, batch_first=True) for layer in range(layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(layers))
        self.ahead = nn.Conv1d(width, width, ahead + 1, groups=width, bias=False)
        self.head = nn.Linear(width, characters, bias=False)

    def forward(self, spectrograms: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities ``[frames, b, characters]``, and how many frames of each utterance count.

        Args:
            spectrograms: float32 ``[b, BINS, frames]``.
            frames: int64 ``[b]``, those that are no padding.
        """
        states = self.convolutions(spectrograms.unsqueeze(1)).flatten(1, 2)  # [b, width, frames]
        for number, layer in enumerate(self.recurrent):
            if number:
                states = self.norms[number - 1](states)
            states = layer(states.transpose(1, 2))[0].transpose(1, 2)
        following = self.ahead.kernel_size[0] - 1
        states = nn.functional.hardtanh(self.ahead(nn.functional.pad(states, (0, following))), 0.0, 20.0)
        scores = self.head(self.norms[-1](states).permute(2, 0, 1))
        return torch.log_softmax(scores, 2), _halved(frames)


def _halved(length: _Length) -> _Length:
    return (length - 1) // 2 + 1


def _build(characters: int) -> nn.Module:
    return SpeechModel(characters, width=800, layers=5)


# The paper gives 5 layers of 800 and the number of parameters. The rest is inferred: of Deep Speech 2's usual forms,
# one direction, these two convolutions, a look-ahead of 20 frames and 29 characters without bias give exactly that.
LSTM_AN4 = ModelSpec(
    "lstm-an4",
    "speech",
    _build,
    outputs=29,
    numel=27_569_568,
    source="Shi et al. 2019: 5 layers of 800; the rest is inferred from the number of parameters",
    eval_batch=8,
)
