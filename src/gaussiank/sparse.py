"""The one value that flows between rooms, and the shape legend that every docstring uses.

Shape legend: ``[numel]`` a flat vector of a bucket, a layer or a whole model (d in formulas); ``[k]`` entries asked
for; ``[kept]`` entries really chosen; ``[world_size]`` one row for each worker. Indices are int32 and ascending.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_NUMEL = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class SparseGradient:
    """Hold the chosen entries of a flat vector: where they are, what they are, and how long the vector is.

    Args:
        indices: int32 ``[kept]``, ascending, without repeats, each in ``[0, numel)``.
        values: float32 or float64 ``[kept]``, on the same device.
        numel: length of the dense vector, 1 to 2**31 - 1.
        row: the payload of these entries on the wire of their exchange, if a kernel has written it, and what the mean
            is counted in; what that rounds off the values is in the residual already. None: nothing has been rounded.

    Raises:
        ValueError: a shape, dtype, device or length does not fit. Order and range of the indices are not read here,
            because that would wait for an accelerator: ``check`` does it.

    Example:
        >>> sparse = SparseGradient(torch.tensor([0, 2], dtype=torch.int32), torch.tensor([3.0, -1.0]), numel=4)
        >>> sparse.kept, sparse.dense().tolist()
        (2, [3.0, 0.0, -1.0, 0.0])
    """

    indices: Tensor
    values: Tensor
    numel: int
    row: Tensor | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.numel <= MAX_NUMEL:
            raise ValueError(f"numel must be in [1, {MAX_NUMEL}], got {self.numel}. Split the vector into parts.")
        if self.indices.dtype != torch.int32 or self.indices.dim() != 1:
            raise ValueError(
                f"indices must be a flat int32 tensor, got {self.indices.dtype} of shape "
                f"{tuple(self.indices.shape)}. Flatten and convert it."
            )
        if self.values.shape != self.indices.shape:
            raise ValueError(
                f"values must have one entry for each index, got {tuple(self.values.shape)} values for "
                f"{tuple(self.indices.shape)} indices. Select both with the same mask."
            )
        if self.values.device != self.indices.device:
            raise ValueError(
                f"values must be on the device of the indices, got {self.values.device} and {self.indices.device}. "
                "Move one of them."
            )

    @classmethod
    def pick(cls, vector: Tensor, indices: Tensor) -> SparseGradient:
        """Pick the entries of a flat ``[numel]`` vector that stand at ``indices``."""
        return cls(indices, vector[indices], vector.numel())

    @property
    def kept(self) -> int:
        """Number of entries really chosen."""
        return self.indices.numel()

    def dense(self) -> Tensor:
        """Spread the entries over a new dense ``[numel]`` vector of zeros."""
        out = self.values.new_zeros(self.numel)
        out[self.indices] = self.values
        return out

    def check(self) -> SparseGradient:
        """Read the indices and raise unless they are ascending, without repeats and in range; returns itself.

        Raises:
            ValueError: the first rule that is broken, with the position.
        """
        if self.kept:
            steps = self.indices[1:] <= self.indices[:-1]
            if bool(steps.any()):
                at = int(steps.nonzero()[0, 0])
                raise ValueError(
                    f"indices must ascend without repeats, got {int(self.indices[at])} before "
                    f"{int(self.indices[at + 1])} at position {at}. Sort them and drop repeats."
                )
            low, high = int(self.indices[0]), int(self.indices[-1])
            if low < 0 or high >= self.numel:
                raise ValueError(
                    f"indices must be in [0, {self.numel}), got {low if low < 0 else high}. "
                    "Select from a vector of numel entries."
                )
        return self
