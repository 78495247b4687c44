"""A small decoder-only transformer on bytes, that two cores can train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_spec import ModelSpec


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
            _turned(query, turns), _turned(key, turns), value, is_causal=True
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


def _turned(states: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    cosine, sine = turns
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


def _build(vocabulary: int) -> nn.Module:
    return Transformer(vocabulary, width=160, layers=4, heads=5)


TRANSFORMER = ModelSpec(
    "transformer",
    "language",
    _build,
    outputs=256,
    numel=1_313_600,
    source="Radford et al. 2019 (GPT-2), much smaller: 4 layers of 160, 5 heads",
    eval_batch=32,
)
