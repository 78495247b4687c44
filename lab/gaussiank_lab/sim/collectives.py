"""Our collectives on a cluster: the messages of ``gaussiank.cost``, with curves for the codec's sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from gaussiank import cost
from gaussiank_lab.sim.curve import Overlap, WireSize
from gaussiank_lab.sim.topology import Cluster

from .operations import (
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    broadcast_s,
    gather_level_s,
    swap_s,
)

INDEX_HEAD_BYTES = 12
"""Before a leader's indices: their count, their size and a checksum."""


class Cost(NamedTuple):
    """What one exchange costs.

    Attributes:
        network_s: seconds on the network.
        sent_bytes: bytes that each worker sends, on average.
        merged: entries that each worker merges between messages.
        added: entries that each worker decodes and adds up at the end.
    """

    network_s: float
    sent_bytes: float = 0.0
    merged: float = 0.0
    added: float = 0.0


@dataclass(frozen=True)
class Load:
    """What is to be exchanged.

    Args:
        numel: length of the vector.
        room: entries that a worker's message has room for.
        wire: how they travel.
        overlap: how much of what workers select is the same.
    """

    numel: int
    room: float
    wire: WireSize
    overlap: Overlap = field(default_factory=Overlap)

    @property
    def k(self) -> float:
        """Entries that a worker sends."""
        return self.room

    def whole(self, entries: float) -> float:
        """Leave fractions: they are means."""
        return entries

    def union(self, workers: float) -> float:
        """As the overlap says."""
        return self.overlap.union(self.room, self.numel, workers)

    def selection_bytes(self) -> float:
        """A payload."""
        return self.wire.payload_bytes(self.room, self.numel)

    def region_bytes(self, entries: float, regions: float) -> float:
        """A payload of a part of the vector."""
        return self.wire.payload_bytes(entries, self.numel / regions)

    def row_bytes(self, entries: float, runs: float = 1) -> float:
        """A payload with room for any values."""
        return self.wire.fixed().payload_bytes(min(entries, self.numel / runs), self.numel / runs)

    def indices_bytes(self) -> float:
        """Their code, and a head."""
        return INDEX_HEAD_BYTES + self.room * self.wire.index_bits(min(1.0, self.room / self.numel)) / 8

    def values_bytes(self, entries: float) -> float:
        """Values of one width."""
        return entries * self.wire.fixed().value_bits / 8

    def exact_bytes(self, entries: float) -> float:
        """A payload with values in 32 bits."""
        return replace(self.wire.fixed(), value_bits=32).payload_bytes(entries, self.numel)


def on_cluster(cluster: Cluster, workers: int, exchange: cost.Cost) -> Cost:
    """Put the messages of an exchange on a cluster's links."""
    levels = cluster.levels(workers)
    network_s = sent_bytes = 0.0
    for kind, size, level, _ in exchange.messages:
        taking_part = workers if level is None else levels[level].members
        if kind == "swaps":
            rounds = [one for one in levels for _ in range(math.ceil(math.log2(one.members)))]
            network_s += sum(swap_s(cluster, one, size) for one in rounds)
            sent_bytes += len(rounds) * size
            continue
        if level is None:
            network_s += _OPERATIONS[kind](cluster, workers, size)
        else:
            network_s += gather_level_s(cluster, levels[level], size)
        sent_bytes += cost.bytes_of(cost.Message(kind, size), taking_part)
    return Cost(network_s, sent_bytes, exchange.merged, exchange.added)


_OPERATIONS: dict[str, Callable[[Cluster, int, float], float]] = {
    "all_gather": all_gather_s,
    "all_reduce": all_reduce_s,
    "all_to_all": all_to_all_s,
    "broadcast": broadcast_s,
}


def dense(cluster: Cluster, workers: int, vector_bytes: float) -> Cost:
    """Cost an all-reduce of the whole vector."""
    return on_cluster(cluster, workers, cost.dense(vector_bytes))


def _sparse(formula: Callable[[Load, int], cost.Cost], cluster: Cluster, workers: int, load: Load) -> Cost:
    """Cost one exchange; a worker alone has only to add its own entries up."""
    return Cost(0.0, 0.0, 0.0, load.room) if workers == 1 else on_cluster(cluster, workers, formula(load, workers))


def _by_levels(cluster: Cluster, workers: int, load: Load, *, trim: bool) -> Cost:
    """Cost sums that go up the levels of the cluster and down again."""
    members = [level.members for level in cluster.levels(workers)]
    return _sparse(lambda load, _: cost.hierarchical(load, members, trim=trim), cluster, workers, load)


COLLECTIVES: dict[str, Callable[[Cluster, int, Load], Cost]] = {
    "allgather": partial(_sparse, cost.all_gather),
    "split": partial(_sparse, cost.split),
    "split:trim=false": partial(_sparse, cost.split_untrimmed),
    "leader": partial(_sparse, cost.leader),
    "tree": partial(_sparse, cost.tree),
    "hierarchical": partial(_by_levels, trim=True),
    "hierarchical:trim=false": partial(_by_levels, trim=False),
}
"""Name, as the command line and ``compress`` take it -> cost."""
