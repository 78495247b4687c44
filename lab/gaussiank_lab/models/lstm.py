"""A language model of stacked LSTM layers: a class for every size."""

from __future__ import annotations

from torch import Tensor, nn


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
