"""What every value code is: a rounding, done when entries are packed, and an exact way to bytes and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

Rounding = Literal["nearest", "stochastic"]


class ValueCode(ABC):
    """Round values to what the code can write, write them to bytes, and read them back. Frozen; all in one table.

    ``decode(encode(round(x))) == round(x)`` bit for bit, and infinities and NaN stay what they are, or become NaN:
    every worker must see them. All of it is plain torch on any device, without a host synchronisation; codes whose
    size varies are for the CPU alone.

    Attributes:
        name: its key in ``VALUE_CODES``, and its word in ``Wire.parse``.
        number: its number on the wire, for ever.
        dtype: dtype of decoded values.
        least_bits: bits that each value takes at least.
        exact: whether ``round`` changes nothing.
        stochastic: whether it can round at random.
        varies: whether the values decide the size of a section, and not their count alone.
        plain: name of the code that sends the same rounded values in sections of a fixed size; itself when None.
    """

    name: ClassVar[str]
    number: ClassVar[int]
    dtype: ClassVar[torch.dtype] = torch.float32
    least_bits: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True
    varies: ClassVar[bool] = False
    plain: ClassVar[str | None] = None

    @abstractmethod
    def bytes_for(self, slots: int) -> int:
        """Return the size of a section of ``slots`` values, the most that it can be if it varies."""

    def usual_bytes(self, slots: int) -> int:
        """Return the size of a section of ``slots`` values that were selected by magnitude, about."""
        return self.bytes_for(slots)

    def size_of(self, section: Tensor, count: int, slots: int) -> int:
        """Return the size of the section of ``slots`` values, ``count`` of them used, that untrusted bytes begin with.

        Example:
            >>> from gaussiank.codec.values import VALUE_CODES
            >>> VALUE_CODES["bf16"].size_of(torch.zeros(100, dtype=torch.uint8), 3, 5)
            10
        """
        return self.bytes_for(slots)

    @abstractmethod
    def round(self, values: Tensor, rounding: Rounding = "nearest", generator: torch.Generator | None = None) -> Tensor:
        """Round float32 or float64 ``[kept]`` values to what ``encode`` can write; a new tensor of the same dtype."""

    @abstractmethod
    def encode(self, values: Tensor, slots: int) -> Tensor:
        """Encode rounded ``[kept]`` values to uint8 ``[bytes_for(slots)]``; unused slots are zero, or not there."""

    @abstractmethod
    def decode(self, section: Tensor, count: int, slots: int) -> Tensor:
        """Decode the first ``count`` values of a section of ``slots``; any bytes give some values.

        Raises:
            ValueError: the section is damaged; only where the size varies.
        """


def saturate(values: Tensor, largest: float) -> Tensor:
    """Limit finite values to ``+-largest``, so that none becomes infinite by rounding; infinities and NaN pass.

    Example:
        >>> saturate(torch.tensor([1e9, -torch.inf, 3.0]), 65504.0).tolist()
        [65504.0, -inf, 3.0]
    """
    return torch.where(values.isinf(), values, values.clamp(-largest, largest))


def power_of_two(exponents: Tensor) -> Tensor:
    """Return ``2.0 ** exponents`` as float64, exactly, for integers in [-1022, 1023].

    Example:
        >>> power_of_two(torch.tensor([-1, 10])).tolist()
        [0.5, 1024.0]
    """
    return ((exponents.long() + 1023) << 52).view(torch.float64)


def to_grid(values: Tensor, rounding: Rounding, generator: torch.Generator | None) -> Tensor:
    """Round float64 values to integers: to the nearest, ties to even, or up or down at random without bias.

    Example:
        >>> to_grid(torch.tensor([0.6, 2.5], dtype=torch.float64), "nearest", None).tolist()
        [1.0, 2.0]
    """
    if rounding == "nearest":
        return values.round()
    return (values + torch.rand(values.shape, dtype=values.dtype, device=values.device, generator=generator)).floor()
