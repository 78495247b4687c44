"""What torch's own collectives cost on a cluster; ours are made of them.

P workers, n bytes, and for each level of the cluster m members that share a link of ``start`` seconds a message and
``byte`` seconds a byte:

    ring all-reduce     2 (P - 1) steps of n / P bytes, each as slow as the slowest link that the ring crosses
    tree all-reduce     2 ceil(log2 m) starts on each level, and the n bytes up and down, in pipelined pieces
    hierarchical        per level: reduce-scatter and all-gather among its members, of what the levels below left over
    ring all-gather     P - 1 steps of n bytes; short rows may go straight, as in an all-to-all
    all-to-all          P - 1 messages from each worker; through each unit's link goes all that leaves the unit
    broadcast           ceil(log2 m) sends of n bytes on each level
    swap                one exchange with a partner; all workers of a unit use its link at once

Source: Thakur, Rabenseifner & Gropp 2005, "Optimization of Collective Communication Operations in MPICH", 3 and 4.
Differs: tiers of links, of which the slowest decides, and a cost for each message apart from latency.
"""

from __future__ import annotations

import math

from gaussiank_lab.sim.topology import Cluster, Level


def all_reduce_s(cluster: Cluster, workers: int, vector_bytes: float) -> float:
    """Return the seconds of an all-reduce, by the fastest algorithm that the cluster's library has."""
    levels = cluster.levels(workers)
    if not levels:
        return 0.0
    ways = {"ring": _ring_all_reduce_s, "tree": _tree_all_reduce_s, "hierarchical": _hierarchical_all_reduce_s}
    best_s = min(ways[name](levels, workers, vector_bytes) for name in cluster.algorithms)
    return cluster.correct("all_reduce", vector_bytes, best_s)


def all_gather_s(cluster: Cluster, workers: int, row_bytes: float) -> float:
    """Return the seconds until each worker has the ``row_bytes`` of every other, in a ring or, if short, straight."""
    if workers * row_bytes <= cluster.straight_bytes:
        return all_to_all_s(cluster, workers, row_bytes)
    levels = cluster.levels(workers)
    return cluster.correct("all_gather", row_bytes, (workers - 1) * _step_s(levels, row_bytes)) if levels else 0.0


def all_to_all_s(cluster: Cluster, workers: int, row_bytes: float) -> float:
    """Return the seconds until each worker has sent ``row_bytes`` to every other."""
    levels = cluster.levels(workers)
    if not levels:
        return 0.0
    leaving = [level.inside * (workers - level.inside) for level in levels]
    if len(levels) > 1:
        leaving[0] = levels[0].members - 1  # a worker's own link carries what stays in the node
    busy_s = max(level.link.busy_s(count * row_bytes) for count, level in zip(leaving, levels, strict=True))
    handling_s = (workers - 1) * max(level.link.message_s for level in levels)
    latency_s = max(level.link.latency_s for level in levels)
    return cluster.correct("all_to_all", row_bytes, latency_s + max(busy_s, handling_s))


def broadcast_s(cluster: Cluster, workers: int, vector_bytes: float) -> float:
    """Return the seconds until every worker has one worker's vector, down a binomial tree on each level."""
    seconds = sum(_rounds(level.members) * level.link.send_s(vector_bytes) for level in cluster.levels(workers))
    return cluster.correct("broadcast", vector_bytes, seconds)


def swap_s(cluster: Cluster, level: Level, row_bytes: float) -> float:
    """Return the seconds in which each worker exchanges a row with a partner in another member of ``level``."""
    return cluster.correct("swap", row_bytes, level.link.send_s(level.inside * row_bytes))


def gather_level_s(cluster: Cluster, level: Level, row_bytes: float) -> float:
    """Return the seconds of an all-gather of one row a worker, among the members of one level alone."""
    peers, link = level.members - 1, level.link
    if level.members * row_bytes <= cluster.straight_bytes:
        return link.latency_s + max(link.busy_s(peers * level.inside * row_bytes), peers * link.message_s)
    return peers * link.send_s(level.inside * row_bytes)


def _rounds(members: int) -> int:
    return math.ceil(math.log2(members))


def _step_s(levels: tuple[Level, ...], row_bytes: float) -> float:
    """Return one step of a ring through all workers: one edge of it leaves each unit, and the slowest edge decides."""
    return max(level.link.send_s(row_bytes) for level in levels)


def _ring_all_reduce_s(levels: tuple[Level, ...], workers: int, vector_bytes: float) -> float:
    return 2 * (workers - 1) * _step_s(levels, vector_bytes / workers)


def _tree_all_reduce_s(levels: tuple[Level, ...], workers: int, vector_bytes: float) -> float:
    starts_s = sum(_rounds(level.members) * level.link.start_s for level in levels)
    return 2 * (starts_s + max(level.link.busy_s(vector_bytes) for level in levels))


def _hierarchical_all_reduce_s(levels: tuple[Level, ...], workers: int, vector_bytes: float) -> float:
    seconds, share = 0.0, vector_bytes
    for level in levels:  # level.inside workers of a member each carry their share through its link
        seconds += 2 * (level.members - 1) * level.link.send_s(level.inside * share / level.members)
        share /= level.members
    return seconds
