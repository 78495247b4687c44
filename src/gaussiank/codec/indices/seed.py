"""Indices that both ends draw alike: none is sent."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussiank.codec.bits import Bytes
from gaussiank.codec.native import Fault, error

from .index_code import DeviceCode, Indices, check_indices

FINGERPRINT_BYTES = 4


@dataclass(frozen=True)
class SharedDraw:
    """Say how the indices of one vector at one step are drawn, the same on every worker.

    Args:
        seed: number that all draws of the run start from.
        step: backwards that have exchanged, used by an optimizer or not.
        part: number that tells the vectors of one step apart.
        draw: ``draw(numel, count)`` returns int32 ``[count]`` ascending indices that depend on nothing else but
            ``seed``, ``step`` and ``part``.

    Example:
        >>> shared = SharedDraw(seed=1, step=2, part=0, draw=lambda numel, count: torch.arange(count).int())
        >>> shared.draw(10, 3).tolist()
        [0, 1, 2]
    """

    seed: int
    step: int
    part: int
    draw: Callable[[int, int], Tensor]

    @property
    def fingerprint(self) -> bytes:
        """Four bytes that differ when seed, step or part do: the CRC-32 of the three as 64-bit numbers."""
        numbers = (number % 2**64 for number in (self.seed, self.step, self.part))
        return struct.pack("<I", zlib.crc32(struct.pack("<3Q", *numbers)))


@dataclass(frozen=True)
class Seed(DeviceCode):
    """Send a fingerprint of seed, step and part; the receiver draws the indices again.

    Args:
        shared: the draw; must be given before anything is encoded or decoded.
    """

    name: ClassVar[str] = "seed"
    number: ClassVar[int] = 4
    shared: SharedDraw | None = None

    def max_bytes(self, count: int, numel: int) -> int:
        """Return the size of the fingerprint."""
        return FINGERPRINT_BYTES

    def least_bytes(self, count: int, numel: int) -> int:
        """Return the size of the fingerprint."""
        return FINGERPRINT_BYTES

    def encode(self, indices: Tensor, numel: int, slots: int) -> Tensor:
        """Write the fingerprint; on the CPU the indices are compared with the draw.

        Raises:
            ValueError: there is no draw, the indices are others, or there is room for more than was drawn.
        """
        shared = self._require()
        if slots != indices.numel():
            raise ValueError(
                f"capacity must be the {indices.numel()} entries drawn when indices are not sent, got {slots}. "
                "Leave it out, or use another index code."
            )
        if indices.device.type == "cpu" and not torch.equal(indices, shared.draw(numel, slots)):
            raise ValueError("indices must be those that SharedDraw draws, got others. Use another index code.")
        return torch.frombuffer(bytearray(shared.fingerprint), dtype=torch.uint8).to(indices.device)

    def decode(self, section: Tensor, count: int, numel: int) -> Tensor:
        """Compare the fingerprint and draw.

        Raises:
            ValueError: there is no draw, or it is of another seed, step or part.
        """
        shared = self._require()
        if section.numel() != FINGERPRINT_BYTES:
            raise error(Fault.SURPLUS)
        if bytes(section.tolist()) != shared.fingerprint:
            raise ValueError(
                f"payload must be of seed {shared.seed}, step {shared.step}, part {shared.part}, got another "
                "fingerprint. Workers disagree on the draw."
            )
        indices = self.decode_unchecked(section, count, numel)
        check_indices(indices.numpy(), numel)
        return indices

    def decode_unchecked(self, section: Tensor, slots: int, numel: int) -> Tensor:
        """Draw."""
        indices = self._require().draw(numel, slots)
        if indices.shape != (slots,) or indices.dtype != torch.int32:
            raise ValueError(
                f"draw must return {slots} int32 indices, got {indices.dtype} of shape {tuple(indices.shape)}. Fix it."
            )
        return indices.to(section.device)

    def encode_reference(self, indices: Indices, numel: int) -> Bytes:
        """Write the fingerprint."""
        return np.frombuffer(self._require().fingerprint, dtype=np.uint8)

    def decode_reference(self, section: Bytes, count: int, numel: int) -> NDArray[np.int64]:
        """Draw."""
        return self.decode_unchecked(torch.from_numpy(section), count, numel).numpy().astype(np.int64)

    def _require(self) -> SharedDraw:
        if self.shared is None:
            raise ValueError("shared must be a SharedDraw for the index code 'seed', got None. Pass one on both ends.")
        return self.shared
