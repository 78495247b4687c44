from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from tests.each import each

from gaussiank_lab.sim import Cluster, Curve, Link, Tier

INSIDE, OUTSIDE, FAR = Link("inside", 1e11), Link("outside", 1e10), Link("far", 1e8)


def shape(cluster: Cluster, workers: int) -> list[tuple[str, int, int]]:
    return [(level.link.name, level.members, level.inside) for level in cluster.levels(workers)]


def test_workers_fill_one_unit_before_the_next() -> None:
    cluster = Cluster("c", (Tier("node", INSIDE, 8), Tier("rack", OUTSIDE, 4), Tier("region", FAR)))
    assert shape(cluster, 1) == []
    assert shape(cluster, 5) == [("inside", 5, 1)]
    assert shape(cluster, 8) == [("inside", 8, 1)]
    assert shape(cluster, 9) == [("inside", 8, 1), ("outside", 2, 8)]
    assert shape(cluster, 96) == [("inside", 8, 1), ("outside", 4, 8), ("far", 3, 32)]
    assert math.isinf(cluster.most_workers)


def test_one_worker_in_a_node_leaves_its_tier_out() -> None:
    cluster = Cluster("c", (Tier("node", INSIDE, 1), Tier("rack", OUTSIDE)))
    assert shape(cluster, 3) == [("outside", 3, 1)]


def test_link_times() -> None:
    assert Link("l", 8e6, latency_s=0.5, message_s=0.25).send_s(1e6) == pytest.approx(1.75)
    assert Link("l", 8e6, duplex=False).send_s(1e6) == pytest.approx(2)
    assert Link("l", 8e6, oversubscription=4).send_s(1e6) == pytest.approx(4)
    assert Link("l", 8e6, burst_bytes=250_000).send_s(1e6) == pytest.approx(0.75)
    assert Link("l", 8e6, latency_s=0.5, burst_bytes=250_000).send_s(1000) == pytest.approx(0.5)


def test_correction_multiplies_and_is_not_extrapolated() -> None:
    cluster = Cluster("c", (Tier("rack", OUTSIDE),), corrections={"all_gather": Curve.of([(10, 1.0), (1000, 2.0)])})
    assert cluster.correct("all_gather", 10, 3.0) == pytest.approx(3)
    assert cluster.correct("all_gather", 1e6, 3.0) == pytest.approx(6)
    assert cluster.correct("all_reduce", 10, 3.0) == 3


@each(
    ("make", "sentence"),
    [
        (lambda: Link("10gbe", 0), "bandwidth_bits_s of link 10gbe must be above 0, got 0. "),
        (lambda: Link("10gbe", math.nan), "bandwidth_bits_s of link 10gbe must be above 0, got nan. "),
        (lambda: Link("l", 1e9, latency_s=-1), "latency_s of link l must be at least 0, got -1. "),
        (lambda: Link("l", 1e9, message_s=-1), "message_s of link l must be at least 0, got -1. "),
        (lambda: Link("l", 1e9, oversubscription=0.5), "oversubscription of link l must be at least 1, got 0.5. "),
        (lambda: Tier("node", INSIDE, 0), "members of tier node must be at least 1, got 0. "),
        (lambda: Cluster("c", ()), "tiers of cluster c must be at least one, got none. "),
        (
            lambda: Cluster("c", (Tier("node", INSIDE), Tier("rack", OUTSIDE))),
            "members of tier node must be given where a tier lies above it, got None. ",
        ),
        (
            lambda: Cluster("c", (Tier("rack", OUTSIDE),), ("star",)),
            "algorithms of cluster c must be among ring, tree, hierarchical, got star. ",
        ),
        (
            lambda: Cluster("c", (Tier("rack", OUTSIDE),), corrections={"gossip": Curve()}),
            "corrections of cluster c must be among all_reduce, ",
        ),
        (
            lambda: Cluster("c", (Tier("rack", OUTSIDE, 16),)).levels(17),
            "workers must be at most 16 on c, got 17. ",
        ),
        (lambda: Cluster("c", (Tier("rack", OUTSIDE),)).levels(0), "workers must be at least 1, got 0. "),
    ],
)
def test_impossible_clusters_are_named(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole sentence is compared
        make()
    assert str(caught.value).startswith(sentence)
