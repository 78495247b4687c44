"""Closed forms, and the lower bounds of the paper's four models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.each import each

from gaussiank.comm import communicator
from gaussiank_lab.sim import (
    COLLECTIVES,
    RAW,
    STRAIGHT_BYTES,
    Cluster,
    Link,
    Load,
    Tier,
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    broadcast_s,
    ring_bytes,
)

TEN_GBE = Cluster("10 GbE", (Tier("rack", Link("10 GbE", 10e9)),), ("ring",))


@pytest.mark.parametrize(
    ("numel", "dense_s", "sparse_ms"),
    [
        pytest.param(61.1e6, 0.367, 5.9, id="alexnet"),
        pytest.param(138.4e6, 0.830, 13.3, id="vgg16"),
        pytest.param(25.6e6, 0.153, 2.5, id="resnet50"),
        pytest.param(42.7e6, 0.256, 4.1, id="inception_v4"),
    ],
)
def test_lower_bounds_of_the_papers_models(numel: float, dense_s: float, sparse_ms: float) -> None:
    assert all_reduce_s(TEN_GBE, 16, 4 * numel) == pytest.approx(dense_s, abs=0.001)
    assert 1e3 * all_gather_s(TEN_GBE, 16, 8 * numel / 1000) == pytest.approx(sparse_ms, abs=0.051)


@each("workers", [2, 16, 128])
def test_all_gather_breaks_even_at_one_over_the_workers(workers: int) -> None:
    numel = 10**7
    dense_s = all_reduce_s(TEN_GBE, workers, 4 * numel)
    assert all_gather_s(TEN_GBE, workers, 8 * numel / workers) == pytest.approx(dense_s)


def test_one_worker_sends_nothing() -> None:
    for operation in (all_reduce_s, all_gather_s, all_to_all_s, broadcast_s):
        assert operation(TEN_GBE, 1, 1e9) == 0
    for cost in COLLECTIVES.values():
        alone = cost(TEN_GBE, 1, Load(10**6, 1000, RAW))
        assert (alone.network_s, alone.sent_bytes) == (0, 0)


def test_closed_forms_on_one_kind_of_link() -> None:
    cluster = Cluster("c", (Tier("rack", Link("l", 8e6, latency_s=0.01, message_s=0.002)),), ("ring",))
    assert all_reduce_s(cluster, 4, 1e6) == pytest.approx(6 * (0.012 + 0.25))
    assert all_gather_s(cluster, 4, 1e6) == pytest.approx(3 * 1.012)
    assert all_to_all_s(cluster, 4, 1e6) == pytest.approx(0.01 + 3)  # handling hides behind sending
    assert all_to_all_s(cluster, 1001, 1) == pytest.approx(0.01 + 2)  # and the other way round
    assert broadcast_s(cluster, 5, 1e6) == pytest.approx(3 * 1.012)


def test_short_rows_go_straight_where_the_cluster_says_so() -> None:
    ring = Cluster("c", (Tier("rack", Link("l", 8e6, latency_s=0.01, message_s=0.002)),), ("ring",))
    gloo = replace(ring, straight_bytes=STRAIGHT_BYTES)
    assert all_gather_s(gloo, 4, 1000) == all_to_all_s(gloo, 4, 1000) == pytest.approx(0.01 + 0.006)
    assert all_gather_s(ring, 4, 1000) == pytest.approx(3 * 0.013)
    assert all_gather_s(gloo, 4, 1e6) == all_gather_s(ring, 4, 1e6)
    assert STRAIGHT_BYTES == communicator.STRAIGHT_BYTES


def test_ring_is_as_slow_as_its_slowest_edge() -> None:
    nodes = (Tier("node", Link("fast", 8e9), 4), Tier("rack", Link("slow", 8e6)))
    cluster = Cluster("c", nodes, ("ring",))
    assert all_gather_s(cluster, 4, 1e6) == pytest.approx(3 * 0.001)
    assert all_gather_s(cluster, 8, 1e6) == pytest.approx(7 * 1.0)
    assert all_to_all_s(cluster, 8, 1e6) == pytest.approx(4 * 4)  # four workers' rows for four others, one link


def test_hierarchy_keeps_latency_of_distant_links_out_of_the_ring() -> None:
    tiers = (Tier("node", Link("fast", 1e12), 8), Tier("region", Link("far", 1e9, latency_s=0.05)))
    ring, hierarchical = (Cluster("c", tiers, (name,)) for name in ("ring", "hierarchical"))
    assert all_reduce_s(ring, 64, 1e6) > 126 * 0.05
    assert all_reduce_s(hierarchical, 64, 1e6) == pytest.approx(14 * (0.05 + 1e6 / 8 * 8e-9) + 14 * 1e6 / 8 * 8e-12)
    both = Cluster("c", tiers, ("ring", "hierarchical"))
    assert all_reduce_s(both, 64, 1e6) == all_reduce_s(hierarchical, 64, 1e6)


def test_all_algorithms_send_at_least_the_ring_bytes() -> None:
    link = Link("l", 8e6)
    for name in ("ring", "tree", "hierarchical"):
        cluster = Cluster("c", (Tier("node", link, 4), Tier("rack", link)), (name,))
        assert all_reduce_s(cluster, 16, 1e6) >= ring_bytes(16, 1e6) * link.byte_s * (1 - 1e-12), name


# From gaussiank.collectives' own traffic(numel=10**6, k=1000), nodes of 4 workers.
TRAFFIC = {
    "allgather": {8: 56_140, 16: 120_300, 64: 505_260},
    "split": {8: 16_408, 16: 16_920, 64: 19_656},
    "leader": {8: 10_524.5, 16: 11_351.25, 64: 12_139.3125},
    "tree": {8: 24_060, 16: 32_080, 64: 48_120},
    "hierarchical": {8: 38_140, 16: 54_180, 64: 150_420},
}


@each("name", TRAFFIC)
@each("workers", [8, 16, 64])
def test_bytes_are_those_of_the_real_collectives(name: str, workers: int) -> None:
    cluster = Cluster("c", (Tier("node", Link("l", 1e9), 4), Tier("rack", Link("l", 1e9))))
    cost = COLLECTIVES[name](cluster, workers, Load(10**6, 1000, RAW))
    assert cost.sent_bytes == pytest.approx(TRAFFIC[name][workers])
