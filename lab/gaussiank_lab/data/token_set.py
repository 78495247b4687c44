"""A text as tokens, dealt in windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaussiank_lab.data.split import Batch, Split


@dataclass(frozen=True, eq=False)
class TokenSet(Split):
    """Hold a text, and cut it into windows that do not overlap.

    Args:
        tokens: uint8 or int32 ``[n]``.
        context: tokens in a window; the one after each is its target.
    """

    tokens: Tensor
    context: int
    unit = "windows"

    def __post_init__(self) -> None:
        if len(self) < 1:
            raise ValueError(
                f"context must be in [1, {max(1, len(self.tokens) - 1)}] for a text of {len(self.tokens)} tokens, "
                f"got {self.context}. Give a shorter one, or a longer text."
            )

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def batch(self, chosen: Tensor) -> Batch:
        """Collect windows int64 ``[b, context]``, and the same one token later.

        Example:
            >>> windows = TokenSet(torch.arange(7), context=3).batch(torch.tensor([1]))
            >>> windows.inputs[0].tolist(), windows.targets[0].tolist()
            ([[3, 4, 5]], [[4, 5, 6]])
        """
        places = chosen[:, None] * self.context + torch.arange(self.context + 1)
        tokens = self.tokens[places].long()
        return Batch((tokens[:, :-1],), (tokens[:, 1:],))
