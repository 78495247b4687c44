"""Closed forms, causality of every event, and repeatability."""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.each import each

from gaussiank_lab.sim import (
    COLLECTIVES,
    Bucket,
    Cluster,
    Curve,
    Device,
    Event,
    Link,
    Method,
    Scenario,
    Spread,
    Tier,
    Timeline,
    Workload,
    chrome_trace_text,
    events,
    simulate,
    summarise,
)

DENSE = Method("dense", "dense")
TOPK = Method("topk", "topk", 0.01)
LINK = Link("1 GbE", 1e9, latency_s=1e-4)
CLUSTER = Cluster("c", (Tier("rack", LINK),), ("ring",))
DEVICE = Device("d", select={"topk": Curve.of([(1, 0.004), (1e9, 0.004)])}, decode=Curve.of([(1, 0.001), (1e9, 0.001)]))


def workload(*buckets: tuple[int, float], forward_s: float = 0.1, optimizer_s: float = 0.02) -> Workload:
    return Workload("m", tuple(Bucket(*bucket) for bucket in buckets), forward_s, optimizer_s)


def test_one_link_one_bucket_is_the_sum_of_its_parts() -> None:
    scenario = Scenario(workload((10**6, 0.2)), Device("d"), CLUSTER)
    ring_s = 2 * 3 * (1e-4 + 1e6 * 8e-9)
    assert simulate(scenario, DENSE, 4).step_s == pytest.approx(0.1 + 0.2 + ring_s + 0.02)


def test_one_link_without_overlap_is_the_sum_of_its_parts() -> None:
    scenario = Scenario(workload((10**6, 0.1), (10**6, 0.1)), DEVICE, CLUSTER)
    gather_s = 3 * (1e-4 + (16 + 8 * 20_000) * 8e-9)
    step_s = simulate(scenario, replace(TOPK, scope="model"), 4).step_s
    assert step_s == pytest.approx(0.1 + 0.2 + 0.004 + gather_s + 0.001 + 0.02)


def test_infinite_bandwidth_leaves_computing_alone() -> None:
    free = Cluster("c", (Tier("rack", Link("free", 1e30)),))
    scenario = Scenario(workload((10**6, 0.1), (10**6, 0.2)), DEVICE, free)
    assert simulate(scenario, DENSE, 64).step_s == pytest.approx(0.42)
    assert simulate(scenario, TOPK, 64).step_s == pytest.approx(0.42 + 2 * 0.004 + 0.001)  # the last decode shows


def test_one_worker_waits_for_nobody() -> None:
    scenario = Scenario(workload((10**6, 0.1), (10**6, 0.2)), Device("d"), CLUSTER)
    for method in (DENSE, TOPK):
        timeline = simulate(scenario, method, 1)
        assert timeline.step_s == pytest.approx(scenario.workload.alone_s)
        assert timeline.sent_bytes == 0
        assert summarise(timeline).efficiency == pytest.approx(1)


def test_communication_hides_behind_later_buckets() -> None:
    ring_s = 2 * 3 * (1e-4 + 1e6 * 8e-9)
    scenario = Scenario(workload((10**6, 0.1), (1, 1.0)), Device("d"), CLUSTER)
    last_s = 6 * (1e-4 + 8e-9)
    assert simulate(scenario, DENSE, 4).step_s == pytest.approx(0.1 + 1.1 + last_s + 0.02)
    queued = Scenario(workload((10**6, 0.1), (1, 0.001)), Device("d"), CLUSTER)
    assert simulate(queued, DENSE, 4).step_s == pytest.approx(0.1 + 0.1 + ring_s + last_s + 0.02)


def test_contention_slows_backward_while_messages_are_under_way() -> None:
    ring_s = 2 * 3 * (1e-4 + 1e6 * 8e-9)
    buckets = workload((10**6, 0.1), (1, 1.0))
    slowed = Scenario(buckets, Device("d", contention=0.5), CLUSTER)
    plain = Scenario(buckets, Device("d"), CLUSTER)
    assert simulate(slowed, DENSE, 4).step_s == pytest.approx(simulate(plain, DENSE, 4).step_s + 0.5 * ring_s)


def test_input_pipeline_is_a_floor() -> None:
    scenario = Scenario(replace(workload((1, 0.1)), input_s=5.0), Device("d"), CLUSTER)
    assert simulate(scenario, DENSE, 1, steps=3).step_s == pytest.approx(5)


def test_slowest_worker_decides() -> None:
    spread = Spread(straggler_share=1.0, straggler_factor=3.0)
    scenario = Scenario(workload((10**6, 0.1)), Device("d"), CLUSTER, spread=spread)
    ring_s = 2 * 3 * (1e-4 + 1e6 * 8e-9)
    assert simulate(scenario, DENSE, 4).step_s == pytest.approx(3 * 0.22 + ring_s)


def test_more_workers_wait_longer_for_the_slowest() -> None:
    free = Cluster("c", (Tier("rack", Link("free", 1e30)),))
    scenario = Scenario(workload((10**6, 0.1)), Device("d"), free, spread=Spread(compute_cv=0.1))
    few, many = (simulate(scenario, DENSE, count, steps=50).step_s for count in (2, 512))
    assert scenario.workload.alone_s < few < many < 1.6 * scenario.workload.alone_s


def test_jitter_repeats_with_its_seed_and_is_the_same_for_every_method() -> None:
    spread = Spread(compute_cv=0.1, network_cv=0.2, straggler_share=0.1, straggler_factor=2)
    scenario = Scenario(workload((10**6, 0.1), (10**5, 0.1)), Device("d"), CLUSTER, spread=spread)
    first, again, other = (simulate(scenario, DENSE, 16, steps=5, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.closed, again.closed)
    assert not np.array_equal(first.closed, other.closed)
    sparse = simulate(scenario, TOPK, 16, steps=5, seed=3)
    assert np.array_equal(sparse.filled[0, :, 0], first.filled[0, :, 0])


def test_jitter_has_its_mean_and_deviation() -> None:
    factors = Spread(compute_cv=0.2).compute_factors(np.random.default_rng(1), 1000, 100)
    assert factors.mean() == pytest.approx(1, abs=0.005)
    assert factors.std() == pytest.approx(0.2, abs=0.005)


def check_order(timeline: Timeline) -> None:
    """Everything that an event needs has ended before it starts."""
    ends: dict[tuple[int, int, str, int], Event] = {}
    lanes: dict[tuple[int, str], list[Event]] = defaultdict(list)
    for event in events(timeline):
        ends[event.step, event.worker, event.name, event.bucket] = event
        lanes[event.worker, event.lane].append(event)
        assert event.end_s >= event.start_s >= 0
    for lane in lanes.values():
        lane.sort(key=lambda event: (event.start_s, event.end_s))
        for before, after in itertools.pairwise(lane):
            assert after.start_s >= before.end_s - 1e-9, (before, after)
    whole = timeline.prepared.shape[2] < len(timeline.scenario.workload.buckets)
    last_bucket = len(timeline.scenario.workload.buckets) - 1
    for (step, worker, name, bucket), event in ends.items():
        if name == "exchange":
            for other in range(timeline.began.shape[1]):  # of all workers
                filled = ends[step, other, "backward", last_bucket if whole else bucket]
                chosen = ends.get((step, other, "select", bucket), filled)
                assert filled.end_s <= chosen.end_s <= event.start_s + 1e-9
        if name == "decode" and (arrived := ends.get((step, worker, "exchange", bucket))):
            assert event.start_s >= arrived.end_s - 1e-9
        if name == "optimizer":
            assert all(
                other.end_s <= event.start_s + 1e-9
                for (at, who, what, _), other in ends.items()
                if at == step and who == worker and what != "optimizer"
            )
            if (following := ends.get((step + 1, worker, "forward", -1))) is not None:
                assert following.start_s >= event.end_s - 1e-9


METHODS = st.one_of(
    st.just(DENSE),
    st.builds(
        Method,
        st.just("m"),
        st.just("topk"),
        st.sampled_from([0.001, 0.1, 1.0]),
        collective=st.sampled_from(sorted(COLLECTIVES)),
        scope=st.sampled_from(["bucket", "model"]),
    ),
)


@given(
    method=METHODS,
    buckets=st.lists(st.tuples(st.integers(1, 10**7), st.floats(0, 0.1)), min_size=1, max_size=6),
    workers=st.integers(1, 40),
    contention=st.floats(0, 1),
    spread=st.builds(Spread, st.sampled_from([0.0, 0.2]), st.sampled_from([0.0, 0.5])),
)
def test_nothing_happens_before_what_it_needs(
    method: Method, buckets: list[tuple[int, float]], workers: int, contention: float, spread: Spread
) -> None:
    tiers = (Tier("node", Link("fast", 1e11, 1e-6), 4), Tier("rack", LINK, 5), Tier("region", Link("far", 1e8, 0.01)))
    device = replace(DEVICE, contention=contention)
    scenario = Scenario(workload(*buckets), device, Cluster("c", tiers), spread=spread)
    timeline = simulate(scenario, method, workers, steps=2)
    check_order(timeline)
    assert timeline.step_s >= scenario.workload.alone_s * (0.2 if spread.compute_cv else 1 - 1e-9)


def test_trace_is_what_viewers_read() -> None:
    scenario = Scenario(workload((10**6, 0.1), (10**5, 0.1)), DEVICE, CLUSTER)
    trace = json.loads(chrome_trace_text(simulate(scenario, TOPK, 4)))
    spans = [row for row in trace["traceEvents"] if row["ph"] == "X"]
    assert [row["name"] for row in spans if row["tid"] == 0] == [
        "forward", "backward 0", "select 0", "backward 1", "select 1", "optimizer",
    ]  # fmt: skip
    assert {row["name"] for row in spans if row["tid"] == 1} == {"exchange 0", "exchange 1"}
    assert max(row["ts"] + row["dur"] for row in spans) == pytest.approx(
        1e6 * simulate(scenario, TOPK, 4).step_s, rel=1e-6
    )


def test_4096_workers_200_buckets_20_steps_take_seconds() -> None:
    buckets = workload(*[(10**6, 0.001)] * 200)
    scenario = Scenario(buckets, replace(DEVICE, contention=0.3), CLUSTER, spread=Spread(0.05, 0.05))
    began = time.process_time()
    timeline = simulate(scenario, TOPK, 4096, steps=20)
    assert time.process_time() - began < 5
    assert timeline.steps == 20


@each(
    ("make", "sentence"),
    [
        (lambda: Workload("m", (), 0.1), "buckets of model m must be at least one, got none. "),
        (lambda: workload((0, 0.1)), "numel of bucket 0 of m must be at least 1, got 0. "),
        (lambda: workload((1, -0.1)), "backward_s of bucket 0 of m must be at least 0, got -0.1. "),
        (lambda: workload((1, 0.0), forward_s=0, optimizer_s=0), "seconds of a step of m must be above 0, got 0. "),
        (lambda: Device("d", contention=-1), "contention of device d must be at least 0, got -1. "),
        (lambda: DEVICE.select_s("dgc", 10), "select of device d must have a curve for dgc, got topk. "),
        (lambda: Method("m", density=0), "density must be in (0, 1], got 0. "),
        (lambda: Method("m", collective="star"), "collective must be one of allgather, split, "),
        (lambda: Method("m", scope="layer"), "scope must be one of bucket, model, got 'layer'. "),
        (lambda: Spread(straggler_share=2), "straggler_share must be in [0, 1], got 2. "),
        (lambda: Spread(compute_cv=-1), "compute_cv must be at least 0, got -1. "),
        (lambda: simulate(Scenario(workload((1, 1)), DEVICE, CLUSTER), DENSE, 0), "workers must be at least 1, got 0"),
        (lambda: simulate(Scenario(workload((1, 1)), DEVICE, CLUSTER), DENSE, 2, steps=0), "steps must be at least 1"),
    ],
)
def test_impossible_settings_are_named(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the sentence is compared
        make()
    assert str(caught.value).startswith(sentence)
