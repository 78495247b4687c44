from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tests.each import each

from gaussiank.autotune import Auto, CollectivePlan, Link, parse_policy, policy, tuner
from gaussiank.autotune.tuner import PROBE_BYTES
from gaussiank.codec import Wire
from gaussiank.collectives import AllGather, Collective, DenseAllReduce, Leader, Split, Tree

ALL = (DenseAllReduce(), AllGather(), Split(), Leader(), Tree())


def auto(latency_us: float, mbit: float, choices: tuple[Collective, ...] = ALL, select_ns: float = 1.0) -> Auto:
    return Auto(link=Link(latency_us * 1e-6, mbit * 125e3, select_ns * 1e-9, latency_us * 1e-6), choices=choices)


def test_dense_wins_on_a_fast_link_and_for_a_small_bucket() -> None:
    assert isinstance(auto(5, 100_000).choose(1_000_000, 1000, 4), DenseAllReduce)
    assert isinstance(auto(50, 1000).choose(1000, 10, 4), DenseAllReduce)
    assert isinstance(auto(5, 100).choose(10_000_000, 10_000_000, 4), DenseAllReduce)
    assert isinstance(auto(0, 100).choose(10_000_000, 10_000, 1), DenseAllReduce)


def test_all_gather_wins_with_few_workers_and_split_with_many() -> None:
    picks = auto(50, 100, (DenseAllReduce(), AllGather(), Split()))
    names = [type(picks.choose(10_000_000, 10_000, world_size)).__name__ for world_size in (2, 3, 8, 64)]
    assert names == ["AllGather", "AllGather", "Split", "Split"]


def test_slow_selection_favours_dense() -> None:
    assert isinstance(auto(50, 1000, select_ns=1).choose(1_000_000, 1000, 4), AllGather)
    assert isinstance(auto(50, 1000, select_ns=200).choose(1_000_000, 1000, 4), DenseAllReduce)


def test_prediction_is_messages_bytes_and_work() -> None:
    picks = Auto(touch_ns=10, message_us=100, link=Link(1e-3, 1e6, 1e-9, 2e-3), choices=ALL)
    dense = 6 * 1e-3 + 6 * 1000 / 1e6
    assert picks.predicted_s(DenseAllReduce(), 1000, 10, 4) == pytest.approx(dense)
    gather = 2e-3 + 3 * (20 + 80) / 1e6 + 1000 * 1e-9 + 40 * 10e-9 + 100e-6
    assert picks.predicted_s(AllGather(), 1000, 10, 4) == pytest.approx(gather)


def test_it_must_join_before_it_can_choose() -> None:
    with pytest.raises(RuntimeError, match=r"collective must join a group before it starts, got none\."):
        Auto().choose(1000, 10, 4)


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"every must be at least 0, got -1\."):
        Auto(every=-1)


def test_the_longest_message_is_that_of_any_candidate_and_of_the_probe() -> None:
    given, k, numel, wire = Auto(mbit=1, candidates="split+allgather"), 100, 10_000, Wire()
    longest = max(one.message_bytes(k, numel, 4, wire) for one in (Split(), AllGather()))
    assert given.message_bytes(k, numel, 4, wire) == longest
    assert Auto(candidates="split+allgather").message_bytes(k, numel, 4, wire) == PROBE_BYTES


def test_a_given_collective_and_a_given_link_are_never_revised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy.dist, "get_world_size", lambda group: 4)
    nobody = cast(Any, SimpleNamespace(in_callers_thread=False))
    given, choosing = (CollectivePlan(one, nobody, None, 60.0, Wire()) for one in (DenseAllReduce(), Auto(mbit=1e6)))
    assert given.choose(1000, 10) is given.policy
    assert choosing.choose(1000, 10) is None  # dense, by choice
    for plan in (given, choosing):
        assert plan.tuner is None
        assert plan.begin_repeated()
        assert not plan.revise(3)


@each(("backends", "where"), [("cpu:gloo,cuda:nccl", "cuda"), ("cuda:nccl", "cuda"), ("cpu:gloo,cuda:gloo", "cpu")])
def test_a_link_is_measured_where_its_messages_are(monkeypatch: pytest.MonkeyPatch, backends: str, where: str) -> None:
    monkeypatch.setattr(tuner.dist, "get_backend_config", lambda group: backends)
    assert tuner._device(cast(Any, SimpleNamespace(group=None))) == where


@each(("device", "messages"), [("cpu", 1), ("meta", 8)])
def test_a_fast_link_of_accelerators_is_measured_by_several_messages(
    monkeypatch: pytest.MonkeyPatch, device: str, messages: int
) -> None:
    sent = []

    def message_s(comm: Any, row: torch.Tensor, messages: int = 1, *, straight: bool = False) -> float:
        sent.append((row.numel(), messages))
        return float(30e-6 + 7 * 20e-6 + messages * 7 * row.numel() / 2e11)  # what starting takes is no bandwidth

    monkeypatch.setattr(tuner, "_device", lambda comm: device)
    monkeypatch.setattr(tuner, "_message_s", message_s)
    monkeypatch.setattr(tuner, "max_over_workers", lambda comm, seconds: seconds)
    link = tuner.remeasure(cast(Any, SimpleNamespace(world_size=8)), Link(1.0, 1.0, 0.5, 1.0))
    assert max(sent) == (PROBE_BYTES, messages)
    assert link.bytes_per_s / 2e11 == pytest.approx(1.0, rel=0.05)
    assert link.select_s == 0.5


def test_collectives_are_known_by_the_names_of_their_papers() -> None:
    assert parse_policy("oktopk:slack=1.5") == Split(slack=1.5)
    assert parse_policy("gtopk") == Tree()
    assert Auto(candidates="gtopk+dense").rejects(bounded=True)
    with pytest.raises(ValueError, match=r"candidates must be among dense, allgather, .*, got 'ring'"):
        Auto(candidates="dense+ring")
