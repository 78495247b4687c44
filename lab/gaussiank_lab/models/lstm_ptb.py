"""LSTM-PTB: two layers of 1,500."""

from __future__ import annotations

from torch import nn

from .lstm import LSTMLanguageModel
from .model_spec import ModelSpec


def _build(vocabulary: int) -> nn.Module:
    return LSTMLanguageModel(vocabulary, width=1500, layers=2, dropout=0.65, spread=0.04)


LSTM_PTB = ModelSpec(
    "lstm-ptb",
    "language",
    _build,
    outputs=10_000,
    numel=66_034_000,
    source="Zaremba et al. 2014, the large model",
    eval_batch=20,
)
