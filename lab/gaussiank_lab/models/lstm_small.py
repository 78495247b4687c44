"""A small LSTM language model, for machines without an accelerator: two layers of 200."""

from __future__ import annotations

from torch import nn

from .lstm import LSTMLanguageModel
from .model_spec import ModelSpec


def _build(vocabulary: int) -> nn.Module:
    return LSTMLanguageModel(vocabulary, width=200, layers=2, dropout=0.0, spread=0.1)


LSTM_SMALL = ModelSpec(
    "lstm-small",
    "language",
    _build,
    outputs=256,
    numel=745_856,
    source="Zaremba et al. 2014, the small model, on bytes",
    eval_batch=64,
)
