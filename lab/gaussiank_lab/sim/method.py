"""A method: which entries, how many, how they travel, and how workers agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from gaussiank_lab.sim.curve import Overlap, WireSize, fixed_bits
from gaussiank_lab.sim.topology import Cluster, Device

from .collectives import COLLECTIVES, Load, dense

RAW = WireSize("raw+fp32", 32, fixed_bits(32))


class Journey(NamedTuple):
    """What one exchange of a vector costs a worker.

    Attributes:
        prepare_s: seconds of selection and encoding, on the way of backward.
        network_s: seconds between the last worker's start and the arrival, with the merging in between.
        finish_s: seconds of decoding and adding.
        sent_bytes: bytes that a worker sends.
    """

    prepare_s: float
    network_s: float
    finish_s: float
    sent_bytes: float


@dataclass(frozen=True)
class Method:
    """Say how gradients are exchanged.

    Args:
        name: for reports.
        compressor: key of the device's selection curves, or ``dense``.
        density: share of entries to send, in (0, 1].
        wire: how entries travel.
        collective: key of ``COLLECTIVES``; not used by ``dense``.
        scope: where k is counted: each ``bucket`` as it is ready, or the whole ``model`` after backward.
        value_bytes: of a dense value: 4, or 2 for 16-bit floats.
        room: entries that a message has room for, over k.

    Raises:
        ValueError: a setting out of its range.
    """

    name: str
    compressor: str = "topk"
    density: float = 0.001
    wire: WireSize = field(default=RAW)
    collective: str = "allgather"
    scope: str = "bucket"
    value_bytes: int = 4
    room: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(
                f"density must be in (0, 1], got {self.density}. Give the share of entries to send, such as 0.001."
            )
        for argument, value, known in (
            ("collective", self.collective, tuple(COLLECTIVES)),
            ("scope", self.scope, ("bucket", "model")),
            ("value_bytes", self.value_bytes, (2, 4)),
        ):
            if value not in known:
                raise ValueError(f"{argument} must be one of {', '.join(map(str, known))}, got {value!r}. Correct it.")

    @property
    def sends_all(self) -> bool:
        """Whether it is a dense method."""
        return self.compressor == "dense"

    def journey(self, numel: int, device: Device, cluster: Cluster, workers: int, overlap: Overlap) -> Journey:
        """Cost the exchange of one vector."""
        if self.sends_all:
            cost = dense(cluster, workers, numel * self.value_bytes)
            cast_s = device.cast(numel) if self.value_bytes < 4 else 0.0
            return Journey(cast_s / 2, cost.network_s, cast_s / 2, cost.sent_bytes)
        k = max(1, round(self.density * numel))
        load = Load(numel, min(numel, self.room * k), self.wire, overlap)
        cost = COLLECTIVES[self.collective](cluster, workers, load)
        prepare_s = device.select_s(self.compressor, numel) + device.encode(load.room)
        finish_s = device.clear(numel) + device.decode(cost.added)
        network_s = cost.network_s + device.merge(cost.merged)
        if workers > 1:
            network_s += device.exchange.get(self.collective, 0.0)
        return Journey(prepare_s, network_s, finish_s, cost.sent_bytes)
