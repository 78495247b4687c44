"""How fast a link of the lab is: a number with a unit, or one of two words."""

from __future__ import annotations

import re
from dataclasses import dataclass

LOOPBACK = "loopback"
UNSHAPED = "unshaped"
LEAST_BITS_S, MOST_BITS_S = 1e6, 1e11
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_BURST_S = 0.001
_QUEUE_S = 0.05


@dataclass(frozen=True)
class Rate:
    """The rate of a link in each direction.

    Attributes:
        name: as the user wrote it.
        bits_s: bits a second; None for a link that nothing slows down.
        isolated: whether each rank has a network of its own; without one they share this machine's loopback.
    """

    name: str
    bits_s: float | None
    isolated: bool

    @property
    def mtu(self) -> int:
        """Bytes of the largest packet: as in a usual network, or a fast one that is set up for it."""
        return 9000 if self.bits_s is None or self.bits_s > 2e9 else 1500

    @property
    def burst_bytes(self) -> int:
        """Bytes that may leave at once after a pause: what the rate carries in 1 ms, and at least two packets.

        A smaller one throttles below the rate, because a timer of a busy machine is late; a larger one lets short
        messages through unshaped.
        """
        assert self.bits_s is not None  # only a shaped link has one
        return int(max(2 * (self.mtu + 14), _BURST_S * self.bits_s / 8))

    @property
    def queue_bytes(self) -> int:
        """Bytes that wait at a port before packets are dropped: 50 ms, and at least a quarter of a megabyte."""
        assert self.bits_s is not None
        return int(max(256_000, _QUEUE_S * self.bits_s / 8)) + self.burst_bytes


def parse_rate(text: str) -> Rate:
    """Read a rate: ``20mbit``, ``1gbit``, ``unshaped`` (separate networks at full speed) or ``loopback``.

    Raises:
        ValueError: it is none, or out of 1 Mbit to 100 Gbit a second.

    Example:
        >>> parse_rate("2.5gbit").bits_s
        2500000000.0
    """
    name = text.strip().lower()
    if name in (LOOPBACK, UNSHAPED):
        return Rate(name, None, name == UNSHAPED)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", name)
    bits_s = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not LEAST_BITS_S <= bits_s <= MOST_BITS_S:
        raise ValueError(
            f"rates must be loopback, unshaped, or from 1mbit to 100gbit, got {text!r}. Write 20mbit,1gbit,loopback."
        )
    return Rate(name, bits_s, isolated=True)
