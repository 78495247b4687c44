"""From measured collectives to a link, and to what the model gets wrong about each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gaussiank_lab.sim.curve import Curve
from gaussiank_lab.sim.topology import Cluster, Link, Tier

from .operations import all_gather_s, all_reduce_s, all_to_all_s, broadcast_s, swap_s

Points = Sequence[tuple[float, float]]


def operation_s(cluster: Cluster, operation: str, workers: int, size_bytes: float) -> float:
    """Return the modelled seconds of one of torch's collectives.

    Raises:
        ValueError: an unknown operation.
    """
    if operation == "swap":
        levels = cluster.levels(workers)
        return swap_s(cluster, levels[-1], size_bytes) if levels else 0.0
    known = {
        "all_reduce": all_reduce_s, "all_gather": all_gather_s, "all_to_all": all_to_all_s, "broadcast": broadcast_s,
    }  # fmt: skip
    if operation not in known:
        raise ValueError(f"operation must be one of {', '.join((*known, 'swap'))}, got {operation!r}. Correct it.")
    own = replace(cluster, straight_bytes=0.0)  # torch's own all-gather is a ring
    return known[operation](own, workers, size_bytes)


def fit_link(name: str, measured: Mapping[str, Points], workers: int) -> Link:
    """Fit one link to measured collectives, as if it lay between all workers.

    With one kind of link and a ring, every collective takes ``starts * latency + moved * byte_s`` seconds; both are
    found by least squares of relative errors.

    Args:
        name: of the link.
        measured: operation -> (message bytes, seconds) pairs.
        workers: with which it was measured, at least 2.

    Raises:
        ValueError: nothing was measured, or times from which no bandwidth follows.
    """
    if workers < 2 or not any(measured.values()):
        raise ValueError(f"links of {name} must be measured with at least 2 workers, got {workers}. Probe with more.")
    unit = _one_link(Link("unit", 8.0))  # one second a byte
    start = _one_link(Link("start", 8e30, latency_s=1.0))
    rows = [
        [operation_s(cluster, operation, workers, size_bytes) / seconds for cluster in (start, unit)]
        for operation, points in measured.items()
        for size_bytes, seconds in points
    ]
    latency_s, byte_s = _fit(np.array(rows))
    return Link(name, 8 / byte_s, latency_s)


def fit_cluster(
    name: str,
    measured: Mapping[str, Points],
    workers: int,
    *,
    inside: Mapping[str, Points] | None = None,
    members: int = 1,
    algorithms: tuple[str, ...] = ("ring",),
) -> Cluster:
    """Fit a link between workers, or one inside nodes and one between them, and keep the ratios that the fit leaves.

    The ratios make the model exact at the sizes and workers that were measured; at other numbers of workers they are
    the best guess that there is. Between nodes only rings are fitted: one edge of them leaves each node, so that they
    are as fast as that link; an all-to-all shares it.

    Args:
        name: of the cluster.
        measured: operation -> (message bytes, seconds) pairs, of all workers.
        workers: with which it was measured, at least 2.
        inside: the same of the workers of one node, or None when all links are alike.
        members: workers of a node.
        algorithms: that its library all-reduces with.

    Raises:
        ValueError: nothing was measured, or times from which no bandwidth follows.
    """
    if inside is None or members in (1, workers):
        plain = _one_link(fit_link("the measured link", measured, workers), name, algorithms)
    else:
        rings = {key: measured[key] for key in ("all_reduce", "all_gather") if key in measured}
        tiers = (
            Tier("node", fit_link("the measured link inside nodes", inside, members), members),
            Tier("rack", fit_link("the measured link between nodes", rings, workers)),
        )
        plain = Cluster(name, tiers, algorithms)
    corrections = {
        operation: Curve.of((size, seconds / operation_s(plain, operation, workers, size)) for size, seconds in points)
        for operation, points in measured.items()
    }
    return Cluster(name, plain.tiers, algorithms, corrections)


def _one_link(link: Link, name: str = "one link", algorithms: tuple[str, ...] = ("ring",)) -> Cluster:
    return Cluster(name, (Tier("rack", link),), algorithms)


def _fit(rows: NDArray[np.float64]) -> tuple[float, float]:
    """Solve ``rows @ (latency, byte) = 1`` for values that are not negative."""
    (latency_s, byte_s), *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
    if latency_s < 0:
        latency_s, byte_s = 0.0, float(1 / rows[:, 1].mean())
    if byte_s <= 0:
        raise ValueError(
            "bandwidth must follow from the measured times, got times that do not grow with the message. "
            "Measure larger messages."
        )
    return float(latency_s), float(byte_s)
