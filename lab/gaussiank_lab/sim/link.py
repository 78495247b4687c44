"""One kind of link: what a message over it costs."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import require_above_zero, require_at_least


@dataclass(frozen=True)
class Link:
    """Describe the way from one worker, node or region to the others of its kind.

    A message of n bytes takes ``latency_s + message_s + (n - burst_bytes) * byte_s``, and at least the first two.

    Args:
        name: for errors and reports.
        bandwidth_bits_s: what one end can send, bits a second.
        latency_s: from one end to the other, seconds; half a round trip.
        message_s: what handling one message costs at its ends, seconds; messages of one sender wait for each other.
        duplex: whether sending and receiving go on at once, each at the full rate.
        burst_bytes: what a message sends at once before it is held to the bandwidth: the bucket that a cloud or a
            traffic shaper fills up again during pauses.
        oversubscription: sum of what all ends can send, over what the fabric between them carries, at least 1.

    Raises:
        ValueError: no bandwidth, or a number below its least; names the field and the link.

    Example:
        >>> link = Link("10 GbE", bandwidth_bits_s=10e9, latency_s=50e-6)
        >>> f"{link.send_s(1.25e6):.5f}"
        '0.00105'
    """

    name: str
    bandwidth_bits_s: float
    latency_s: float = 0.0
    message_s: float = 0.0
    duplex: bool = True
    burst_bytes: float = 0.0
    oversubscription: float = 1.0

    def __post_init__(self) -> None:
        require_above_zero(
            f"bandwidth_bits_s of link {self.name}", self.bandwidth_bits_s, "Without a link there is one worker."
        )
        require_at_least(f"latency_s of link {self.name}", self.latency_s, 0, "Half a ping, in seconds.")
        require_at_least(f"message_s of link {self.name}", self.message_s, 0, "Seconds a message.")
        require_at_least(f"burst_bytes of link {self.name}", self.burst_bytes, 0, "Bytes, not bits.")
        require_at_least(
            f"oversubscription of link {self.name}", self.oversubscription, 1, "1 is a fabric that carries everything."
        )

    @property
    def byte_s(self) -> float:
        """Seconds a byte when all ends send and receive at once, as in every collective here."""
        return 8 / self.bandwidth_bits_s * self.oversubscription * (1 if self.duplex else 2)

    @property
    def start_s(self) -> float:
        """Seconds that an empty message takes."""
        return self.latency_s + self.message_s

    def send_s(self, sent_bytes: float) -> float:
        """Return the seconds that a message takes when all ends send one."""
        return self.start_s + self.busy_s(sent_bytes)

    def busy_s(self, sent_bytes: float) -> float:
        """Return the seconds that bytes which are sent together keep the link busy."""
        return max(0.0, sent_bytes - self.burst_bytes) * self.byte_s
