"""No sparsification: the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gaussiank import ops

from .compressor import Compressor, SelectContext, Selection

_NARROW = {"same": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Dense(Compressor):
    """Choose every entry, whatever k: Dense-SGD. The hook answers it with one all-reduce and no indices.

    Args:
        values: how entries travel: ``same`` as in the gradient, or rounded to ``bf16`` or ``fp16``, in which they are
            summed up too. What that rounds off is lost, as with torch's own hooks for it; ``fp16`` ends at 65,504.

    Raises:
        ValueError: other ``values``.

    Example:
        >>> import torch
        >>> Dense().select(torch.tensor([3.0, -1.0]), k=1).indices
        tensor([0, 1], dtype=torch.int32)
    """

    nonfinite_first: ClassVar[bool] = True
    sends_all: ClassVar[bool] = True
    values: str = "same"

    def __post_init__(self) -> None:
        if self.values not in _NARROW:
            raise ValueError(f"values must be one of {', '.join(_NARROW)}, got {self.values!r}. Choose one of them.")

    @property
    def dense_dtype(self) -> torch.dtype | None:
        """As ``values`` says."""
        return _NARROW[self.values]

    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        """Choose all entries."""
        ops.require_vector(accumulated, "accumulated")
        return Selection(torch.arange(accumulated.numel(), dtype=torch.int32, device=accumulated.device))

    def capacity(self, k: int, numel: int) -> int | None:
        """Return numel."""
        return numel
