"""Models of text and speech: two LSTMs and a transformer on tokens, Deep Speech 2's form on spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from gaussiank_lab.data.speech import BINS
from gaussiank_lab.models.model_spec import ModelSpec


class LSTMLanguageModel(nn.Module):
    """Embed tokens, run them through LSTM layers, and predict the next at every place.

    The state starts at zero in each window.

    Args:
        vocabulary: tokens to tell apart.
        width: of the embedding and of every layer.
        layers: how many.
        dropout: share of activations dropped between layers while training.
        spread: weights start uniformly in ``[-spread, spread]``.

    Source: Zaremba et al. 2014, "Recurrent Neural Network Regularization". Differs: there the state is carried from one
    window to the next, which ties the batches of a worker to their order.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, dropout: float, spread: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.recurrent = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout)
        self.head = nn.Linear(width, vocabulary)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -spread, spread)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores float ``[b, context, vocabulary]`` for tokens int64 ``[b, context]``."""
        states, _ = self.recurrent(self.dropout(self.embedding(tokens)))
        scores: Tensor = self.head(self.dropout(states))
        return scores


def _lstm_ptb(vocabulary: int) -> nn.Module:
    return LSTMLanguageModel(vocabulary, width=1500, layers=2, dropout=0.65, spread=0.04)


LSTM_PTB = ModelSpec(
    "lstm-ptb",
    "language",
    _lstm_ptb,
    outputs=10_000,
    numel=66_034_000,
    source="Zaremba et al. 2014, the large model",
    eval_batch=20,
)


def _lstm_small(vocabulary: int) -> nn.Module:
    return LSTMLanguageModel(vocabulary, width=200, layers=2, dropout=0.0, spread=0.1)


LSTM_SMALL = ModelSpec(
    "lstm-small",
    "language",
    _lstm_small,
    outputs=256,
    numel=745_856,
    source="Zaremba et al. 2014, the small model, on bytes",
    eval_batch=64,
)


class _Layer(nn.Module):
    """Attention to what came before, then two fully connected layers; each is normalised first and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        inner = [nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)]
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), *inner)

    def forward(self, states: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        b, context, width = states.shape
        split = self.attention_in(self.attention_norm(states)).view(b, context, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [b, heads, context, width of a head]
        mixed = nn.functional.scaled_dot_product_attention(
            turned(query, turns), turned(key, turns), value, is_causal=True
        )
        states = states + self.attention_out(mixed.transpose(1, 2).reshape(b, context, width))
        added: Tensor = states + self.feed_forward(states)
        return added


class Transformer(nn.Module):
    """Predict the next token at every place from all before it.

    Args:
        vocabulary: tokens to tell apart.
        width: of the states; a multiple of twice ``heads``.
        layers: how many.
        heads: of attention in each layer.

    Source: Radford et al. 2019 (GPT-2); Su et al. 2021 for positions by rotation. Differs from GPT-2: no biases, no
    dropout.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.turning = width // heads // 2
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                inside = name.endswith(("attention_out.weight", "feed_forward.3.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if inside else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores float ``[b, context, vocabulary]`` for tokens int64 ``[b, context]``."""
        turns = _turns(tokens.shape[1], self.turning, tokens.device)
        states = self.embedding(tokens)
        for layer in self.layers:
            states = layer(states, turns)
        scores: Tensor = self.head(self.norm(states))
        return scores


def _turns(context: int, half: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine ``[context, half]`` of the angle by which each place turns each pair."""
    frequencies = 10_000.0 ** (-torch.arange(half, device=device) / half)
    angles = torch.outer(torch.arange(context, device=device), frequencies)
    return angles.cos(), angles.sin()


def turned(states: Tensor, turns: Sequence[Tensor]) -> Tensor:
    """Turn pairs of states by angles, given by their cosines and sines."""
    first, second = states.chunk(2, dim=-1)
    cosine, sine = turns
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


def _transformer(vocabulary: int) -> nn.Module:
    return Transformer(vocabulary, width=160, layers=4, heads=5)


TRANSFORMER = ModelSpec(
    "transformer",
    "language",
    _transformer,
    outputs=256,
    numel=1_313_600,
    source="Radford et al. 2019 (GPT-2), much smaller: 4 layers of 160, 5 heads",
    eval_batch=32,
)


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


def _lstm_an4(characters: int) -> nn.Module:
    return SpeechModel(characters, width=800, layers=5)


# The paper gives 5 layers of 800 and the number of parameters. The rest is inferred: of Deep Speech 2's usual forms,
# one direction, these two convolutions, a look-ahead of 20 frames and 29 characters without bias give exactly that.
LSTM_AN4 = ModelSpec(
    "lstm-an4",
    "speech",
    _lstm_an4,
    outputs=29,
    numel=27_569_568,
    source="Shi et al. 2019: 5 layers of 800; the rest is inferred from the number of parameters",
    eval_batch=8,
)
