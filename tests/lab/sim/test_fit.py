from __future__ import annotations

import pytest

from gaussiank_lab.sim import Cluster, Link, Tier, fit_cluster, operation_s

SIZES = (1e3, 1e5, 1e7)
OPERATIONS = ("all_reduce", "all_gather", "all_to_all", "broadcast", "swap")


def measured(link: Link, workers: int) -> dict[str, list[tuple[float, float]]]:
    cluster = Cluster("true", (Tier("rack", link),), ("ring",))
    return {name: [(size, operation_s(cluster, name, workers, size)) for size in SIZES] for name in OPERATIONS}


def test_finds_the_link_behind_exact_times() -> None:
    cluster = fit_cluster("probed", measured(Link("true", 1e9, latency_s=3e-5), 4), 4)
    (tier,) = cluster.tiers
    link = tier.link
    assert link.bandwidth_bits_s == pytest.approx(1e9)
    assert link.latency_s == pytest.approx(3e-5)
    assert all(ratio == pytest.approx(1) for curve in cluster.corrections.values() for ratio in curve.values)


def test_corrections_make_it_exact_where_it_was_measured() -> None:
    times = measured(Link("true", 1e9, latency_s=3e-5), 4)
    times["all_gather"] = [(size, 1.7 * seconds) for size, seconds in times["all_gather"]]  # a library that is slower
    cluster = fit_cluster("probed", times, 4)
    for name, points in times.items():
        for size, seconds in points:
            assert operation_s(cluster, name, 4, size) == pytest.approx(seconds)


def test_refuses_what_no_link_explains() -> None:
    with pytest.raises(
        ValueError, match=r"^links of the measured link must be measured with at least 2 workers, got 1\."
    ):
        fit_cluster("probed", {"all_reduce": [(1e3, 1e-3)]}, 1)
    with pytest.raises(ValueError, match=r"^links of the measured link must be measured"):
        fit_cluster("probed", {}, 4)
    with pytest.raises(ValueError, match=r"^bandwidth must follow from the measured times"):
        fit_cluster("probed", {"all_reduce": [(1e3, 1e-3), (1e6, 1e-4)]}, 2)


def test_unknown_operation() -> None:
    with pytest.raises(ValueError, match=r"^operation must be one of all_reduce, .*, swap, got 'gossip'\."):
        operation_s(Cluster("c", (Tier("rack", Link("l", 1e9)),)), "gossip", 2, 1)


def test_finds_the_links_inside_and_between_nodes() -> None:
    node, rack = Link("node", 1e11, latency_s=2e-6), Link("rack", 1e9, latency_s=3e-5)
    true = Cluster("true", (Tier("node", node, 4), Tier("rack", rack)), ("ring",))
    outer = {name: [(size, operation_s(true, name, 16, size)) for size in SIZES] for name in OPERATIONS[:4]}
    inner = {name: [(size, operation_s(true, name, 4, size)) for size in SIZES] for name in OPERATIONS[:4]}
    cluster = fit_cluster("probed", outer, 16, inside=inner, members=4)
    for tier, link in zip(cluster.tiers, (node, rack), strict=True):
        assert tier.link.bandwidth_bits_s == pytest.approx(link.bandwidth_bits_s)
        assert tier.link.latency_s == pytest.approx(link.latency_s)
    assert operation_s(cluster, "all_to_all", 64, 1e6) == pytest.approx(operation_s(true, "all_to_all", 64, 1e6))
