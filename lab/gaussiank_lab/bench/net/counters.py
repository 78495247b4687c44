"""What the kernel counts on a device of this process's own network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

FRAME_BYTES = 66
"""Ethernet, IPv4 and TCP with time stamps around a packet; the kernel splits large ones after it has counted them."""


class Counters(NamedTuple):
    """Bytes and packets since the device was made.

    Attributes:
        sent_bytes: with all headers.
        sent_packets: one header each.
        received_bytes: with all headers.
        received_packets: one header each.
    """

    sent_bytes: int
    sent_packets: int
    received_bytes: int
    received_packets: int

    def since(self, earlier: Counters) -> Counters:
        """Return what came on top of an earlier count."""
        return Counters(*(now - then for now, then in zip(self, earlier, strict=True)))

    def without(self, part: Counters, times: float) -> Counters:
        """Return the rest when a part is taken off several times, but never less than nothing."""
        return Counters(*(max(0, round(all_ - times * one)) for all_, one in zip(self, part, strict=True)))

    @property
    def sent_content_bytes(self) -> int:
        """Bytes sent without the headers of packets."""
        return self.sent_bytes - FRAME_BYTES * self.sent_packets

    @property
    def received_content_bytes(self) -> int:
        """Bytes received without the headers of packets."""
        return self.received_bytes - FRAME_BYTES * self.received_packets


def read_counters(device: str, table: Path = Path("/proc/thread-self/net/dev")) -> Counters:
    """Return the counters of a device.

    Raises:
        ValueError: there is no such device.
    """
    found = re.search(rf"^\s*{re.escape(device)}:(.*)$", table.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"device must be in {table}, got {device}. Connect the rank first.")
    numbers = [int(number) for number in found[1].split()]
    return Counters(numbers[8], numbers[9], numbers[0], numbers[1])
