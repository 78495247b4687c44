"""No sparsification: the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gaussiank import ops

from .compressor import Compressor, Selection, Turn


@dataclass(frozen=True)
class Dense(Compressor):
    """Choose every entry, whatever k: Dense-SGD. The hook answers it with one all-reduce and no indices.

    Example:
        >>> import torch
        >>> Dense().select(torch.tensor([3.0, -1.0]), k=1).indices
        tensor([0, 1], dtype=torch.int32)
    """

    nonfinite_first: ClassVar[bool] = True
    sends_all: ClassVar[bool] = True

    def select(self, accumulated: Tensor, k: int, turn: Turn | None = None) -> Selection:
        """Choose all entries."""
        ops.require_vector(accumulated, "accumulated")
        return Selection(torch.arange(accumulated.numel(), dtype=torch.int32, device=accumulated.device))

    def capacity(self, k: int, numel: int) -> int | None:
        """Return numel."""
        return numel
