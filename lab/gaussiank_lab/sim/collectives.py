"""What our collectives cost: each a sum of torch's, with the codec's sizes and the merging in between.

The sizes follow ``gaussiank.collectives``: a fixed room for every message, so that no sizes have to be exchanged first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from .operations import (
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    broadcast_s,
    gather_level_s,
    ring_bytes,
    swap_s,
)
from .overlap import Overlap
from .topology import Cluster
from .wire import Wire

NOTE_BYTES = 8
"""Behind each payload of a split: the load of its region."""
INDEX_HEAD_BYTES = 12
"""Before a leader's indices: their count, their size and a checksum."""
FLAG_BYTES = 1
"""Behind each share of values: whether some are not finite."""


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
    wire: Wire
    overlap: Overlap = field(default_factory=Overlap)

    def row_bytes(self, entries: float, parts: float = 1) -> float:
        """Return the size of a message that has room for any ``entries`` of one of ``parts`` of the vector."""
        return self.wire.fixed().payload_bytes(entries, self.numel / parts)


def dense(cluster: Cluster, workers: int, vector_bytes: float) -> Cost:
    """Cost an all-reduce of the whole vector."""
    return Cost(all_reduce_s(cluster, workers, vector_bytes), ring_bytes(workers, vector_bytes))


def allgather(cluster: Cluster, workers: int, load: Load) -> Cost:
    """Cost everyone's entries going to everyone: traffic grows with the workers."""
    row = load.wire.payload_bytes(load.room, load.numel)
    return Cost(all_gather_s(cluster, workers, row), (workers - 1) * row, 0, workers * load.room)


def split(cluster: Cluster, workers: int, load: Load) -> Cost:
    """Cost an exchange of regions, summed by their owners, trimmed to one size, and gathered."""
    if workers == 1:
        return Cost(0.0, 0.0, 0.0, load.room)
    room = min(load.room, math.ceil(load.room / (workers - 1)))
    row = load.wire.payload_bytes(room, load.numel / workers) + NOTE_BYTES
    network_s = all_to_all_s(cluster, workers, row) + all_gather_s(cluster, workers, row)
    return Cost(network_s, 2 * (workers - 1) * row, workers * room, workers * room)


def split_exact(cluster: Cluster, workers: int, load: Load) -> Cost:
    """Cost the split that sends every sum: sizes are exchanged first, and the sums are as many as the union."""
    if workers == 1:
        return Cost(0.0, 0.0, 0.0, load.room)
    region = load.overlap.union(load.room, load.numel, workers) / workers
    first, second = (load.wire.payload_bytes(sent, load.numel / workers) for sent in (load.room / workers, region))
    sizes_s = all_to_all_s(cluster, workers, 8) + all_reduce_s(cluster, workers, 8)
    network_s = sizes_s + all_to_all_s(cluster, workers, first) + all_gather_s(cluster, workers, second)
    sent = (workers - 1) * (first + second + 8 + 2 * NOTE_BYTES) + ring_bytes(workers, 8)
    return Cost(network_s, sent, load.room, workers * region)


def leader(cluster: Cluster, workers: int, load: Load) -> Cost:
    """Cost one worker's indices down a tree, and everyone's values to whoever sums a share of them, and back."""
    if workers == 1:
        return Cost(0.0, 0.0, 0.0, load.room)
    density = min(1.0, load.room / load.numel)
    indices = INDEX_HEAD_BYTES + load.room * load.wire.index_bits(density) / 8
    share = math.ceil(load.room / workers) * load.wire.fixed().value_bits / 8 + FLAG_BYTES
    network_s = broadcast_s(cluster, workers, indices)
    network_s += all_to_all_s(cluster, workers, share) + all_gather_s(cluster, workers, share)
    sent = (workers - 1) / workers * indices + 2 * (workers - 1) * share
    return Cost(network_s, sent, load.room, load.room)


def tree(cluster: Cluster, workers: int, load: Load) -> Cost:
    """Cost log2 P swaps of k entries, with a merge and a cut after each."""
    row = load.row_bytes(load.room)
    rounds = [level for level in cluster.levels(workers) for _ in range(math.ceil(math.log2(level.members)))]
    network_s = sum(swap_s(cluster, level, row) for level in rounds)
    return Cost(network_s, len(rounds) * row, 2 * load.room * len(rounds), load.room)


def hierarchical(cluster: Cluster, workers: int, load: Load) -> Cost:
    """Cost a sum inside each unit, cut to k entries, of which each of its workers carries a share to other units."""
    return _by_levels(cluster, workers, load, trim=True)


def hierarchical_exact(cluster: Cluster, workers: int, load: Load) -> Cost:
    """Cost the same with nothing cut: what leaves a unit is the union of its selections."""
    return _by_levels(cluster, workers, load, trim=False)


def _by_levels(cluster: Cluster, workers: int, load: Load, *, trim: bool) -> Cost:
    """Go up the levels with sums, and down again with what the highest one has put together."""
    levels = cluster.levels(workers)
    if not levels:
        return Cost(0.0, 0.0, 0.0, load.room)
    network_s = sent = merged = 0.0
    held = load.room  # entries of one member of the level under way
    for level in levels:
        row = load.row_bytes(held / level.inside, level.inside)
        network_s += gather_level_s(cluster, level, row)
        sent += (level.members - 1) * row
        merged += level.members * held / level.inside
        union = load.overlap.union(load.room, load.numel, level.inside * level.members)
        last = level is levels[-1]
        held = min(load.numel, level.members * held) if last and trim else (load.room if trim else union)
    for below, level in zip(reversed(levels[:-1]), reversed(levels), strict=False):
        row = load.row_bytes(held / level.inside, level.inside)
        network_s += gather_level_s(cluster, below, row)
        sent += (below.members - 1) * row
    return Cost(network_s, sent, merged, held)


COLLECTIVES: dict[str, Callable[[Cluster, int, Load], Cost]] = {
    "allgather": allgather,
    "split": split,
    "split:trim=false": split_exact,
    "leader": leader,
    "tree": tree,
    "hierarchical": hierarchical,
    "hierarchical:trim=false": hierarchical_exact,
}
"""Name, as the command line and ``compress`` take it -> cost."""
