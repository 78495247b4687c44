"""Message sizes, from what the codec writes for an entry."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .checks import require_at_least
from .curve import Curve


@dataclass(frozen=True)
class Wire:
    """Say how many bits an entry has on the wire; the numbers come from the real codec, which is not imported here.

    Args:
        name: index code and value code, as the codec names them.
        value_bits: of a value.
        fixed_value_bits: of a value where a message has one size, whatever it holds; ``value_bits`` when None.
        index_bits: of an index, over density.
        header_bytes: of a payload.

    Example:
        >>> raw = Wire("raw+fp32", 32, Curve.of([(1e-6, 32), (1, 32)]), header_bytes=20)
        >>> raw.payload_bytes(1000, 10**6)
        8020.0
    """

    name: str
    value_bits: float
    index_bits: Curve
    header_bytes: int = 20
    fixed_value_bits: float | None = None

    def __post_init__(self) -> None:
        require_at_least(f"value_bits of wire {self.name}", self.value_bits, 0, "32 for float32.")
        require_at_least(f"header_bytes of wire {self.name}", self.header_bytes, 0, "20 for ours.")

    def fixed(self) -> Wire:
        """Return the wire of messages that have room for any values.

        Example:
            >>> Wire("w", 7, fixed_bits(12), fixed_value_bits=16).fixed().payload_bytes(8, 100)
            48.0
        """
        return self if self.fixed_value_bits is None else replace(self, value_bits=self.fixed_value_bits)

    def payload_bytes(self, entries: float, numel: float) -> float:
        """Return the size of a payload with so many entries of a vector of ``numel``."""
        density = min(1.0, entries / numel) if numel else 1.0
        return self.header_bytes + entries * (self.value_bits + self.index_bits(density)) / 8


def fixed_bits(bits: float) -> Curve:
    """Return the curve of a code whose indices always have the same width."""
    return Curve.of([(1e-9, bits), (1, bits)])
