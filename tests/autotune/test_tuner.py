from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from tests.each import each

from gaussiank.autotune import Auto, Link, tuner
from gaussiank.autotune.tuner import _BLOCK, _WORTH, Tuner, _faster, _StepCost, _Trial
from gaussiank.codec import Wire
from gaussiank.collectives import AllGather, DenseAllReduce, Split
from gaussiank.comm import Communicator

FAST, SLOW = Link(5e-5, 2.5e8, 1e-9, 1e-4), Link(2e-4, 1.25e6, 1e-9, 4e-4)
COST = _StepCost([(61_706, 62)], 4, Wire.parse("rice+bf16"))


class Twins:
    """Stands in for a line to three workers that measure what this one does; real lines are in tests/distributed."""

    world_size, rank = 4, 0

    def all_reduce(self, vector: torch.Tensor, op: Any) -> Any:
        return self.Arrived(vector)

    class Arrived:
        def __init__(self, vector: torch.Tensor) -> None:
            self._vector = vector

        def wait(self) -> torch.Tensor:
            return self._vector


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> list[Link]:
    """The link that probing finds, in a list so that a test can change it."""
    found = [FAST]
    monkeypatch.setattr(tuner, "remeasure", lambda comm, last: found[0])
    monkeypatch.setattr(tuner, "as_tensor", lambda comm, numbers: torch.tensor(numbers, dtype=torch.float64))
    monkeypatch.setattr(tuner, "max_over_workers", lambda comm, seconds: list(seconds))
    return found


def auto(link: Link) -> Auto:
    return Auto(link=link, choices=(DenseAllReduce(), AllGather(), Split()))


class Drive:
    """Takes steps with a tuner of its own."""

    def __init__(self, start: Auto) -> None:
        self.auto, self.tuner, self.took_s = start, Tuner(100), 0.0

    def steps(self, steps: int, seconds: Callable[[bool], float]) -> Drive:
        """Take steps; ``seconds`` tells how long one takes that sends everything, or not."""
        self.took_s = 0.0
        for _ in range(steps):
            step_s = seconds(COST.dense(self.auto))
            self.took_s += step_s
            self.auto = self.tuner._after(step_s, self.auto, cast(Communicator, Twins()), COST)
        return self

    @property
    def dense(self) -> bool:
        return COST.dense(self.auto)


@each("slow_from", [100, 10_000])
def test_skipping_changes_no_decision(probe: list[Link], monkeypatch: pytest.MonkeyPatch, slow_from: int) -> None:
    """The tuner is asked at every step, or only where it cannot be skipped: the same ways, trials and counts."""
    now = 1.0
    monkeypatch.setattr(tuner.time, "perf_counter", lambda: now)
    monkeypatch.setattr(tuner, "Communicator", lambda group: Twins())
    histories: list[list[Any]] = []
    skipped = 0
    for skipping in (False, True):
        now, probe[0], chosen, watching, history = 1.0, FAST, auto(FAST), Tuner(100), []
        for step in range(600):
            if not (skipping and watching.try_skip()):
                chosen = watching.update(chosen, cast(Any, None), COST.buckets, COST.wire)
            else:
                skipped += 1
            history.append((chosen.way, chosen.trial, chosen.link, watching._until_probe, watching._elapsed_s))
            probe[0] = SLOW if step >= slow_from else FAST
            now += (0.3 if probe[0] is SLOW else 0.010) if COST.dense(chosen) else 0.015
        histories.append(history)
    assert histories[0] == histories[1]
    assert skipped > 300


def test_what_proves_faster_stays(probe: list[Link]) -> None:
    drive = Drive(auto(FAST))
    assert not drive.dense
    drive.steps(120, lambda dense: 0.010 if dense else 0.012)
    assert drive.auto.way == "dense"
    assert not drive.tuner.trying
    assert drive.auto.trial is None
    drive = Drive(auto(FAST)).steps(120, lambda dense: 0.012 if dense else 0.010)
    assert not drive.dense
    assert drive.auto.trial is None


@each(
    ("percent", "pairs", "dense"),
    [
        ([-10] * 9, 5, False),  # how much longer sparse takes than what is worth it
        ([10] * 9, 4, True),  # ranks 1 to 4: more than 8 against
        ([-10, -20, -15, 5, -18, -12, 6, -25, -8], 9, False),  # ranks 1 and 2 of nine against
        ([-10, -20, -15, 5, 18, -12, 6, -25, -8], 7, True),  # ranks 1, 2 and 6 of seven
        ([30, -1, -1, -1, -1, -1, -1, -1, -2], 9, True),  # one, but of rank 9
    ],
)
def test_a_trial_ends_as_soon_as_it_is_decided(probe: list[Link], percent: list[int], pairs: int, dense: bool) -> None:
    chosen, watching = auto(FAST), Tuner(100)
    trial = watching._trial = _Trial("dense")
    while watching.trying:
        sparse_s = 0.010 * _WORTH * (1 + percent[trial.taken // (2 * _BLOCK)] / 100)
        trial.note(0.010 if trial.trying else sparse_s)
        if trial.judged:
            chosen = watching._judge(trial, chosen, cast(Communicator, Twins()), COST)
    assert trial.taken == pairs * 2 * _BLOCK
    assert COST.dense(chosen) is dense


def test_chance_seldom_speaks_for_sparse() -> None:
    """Of all signs of nine pairs with ranks 1 to 9, about one in twenty is taken for a sparse way that is worth it."""
    found = [
        _faster([_WORTH * math.exp(sign * rank / 100) for rank, sign in enumerate(signs, 1)], [1.0] * 9, clear=False)
        for signs in itertools.product((1, -1), repeat=9)
    ]
    assert found.count("sparse") / len(found) == pytest.approx(0.049, abs=0.001)
    assert None not in found


def test_what_would_take_twice_as_long_is_not_tried(probe: list[Link]) -> None:
    probe[0] = SLOW
    dense_steps = []

    def seconds(dense: bool) -> float:
        dense_steps.append(dense)
        return 0.5 if dense else 0.015

    Drive(auto(SLOW)).steps(1000, seconds)
    assert not any(dense_steps)


def test_one_bad_probe_does_not_make_a_link_slow(probe: list[Link], monkeypatch: pytest.MonkeyPatch) -> None:
    probes = iter([SLOW, FAST])
    monkeypatch.setattr(tuner, "remeasure", lambda comm, last: next(probes))
    drive = Drive(auto(FAST)).steps(20, lambda dense: 0.010)
    assert drive.auto.link == FAST
    assert next(probes, None) is None, "both were taken at the first probe"


@each("lost_s", [0.012, 0.019])
def test_a_link_that_slows_down_is_noticed_soon(probe: list[Link], lost_s: float) -> None:
    """After a trial that has cost much, too."""
    tried = []

    def seconds(dense: bool) -> float:
        tried.append(not dense)
        return 0.010 if dense else lost_s

    probe[0] = FAST
    drive = Drive(auto(FAST)).steps(400 if lost_s > 0.015 else 100, seconds)
    assert drive.dense
    assert any(tried[100:]) is (lost_s > 0.015), "sparse was tried once more, in vain"
    probe[0] = SLOW
    drive.steps(60, lambda dense: 0.3 if dense else 0.015)
    assert not drive.dense
    assert drive.took_s < 25 * 0.3 + 60 * 0.015


@each(("probe_works_s", "exchanges"), [(0.0, 9), (0.012, 8), (0.040, 3)])
def test_step_times_are_exchanged_rarely_where_that_costs_much(
    probe: list[Link], monkeypatch: pytest.MonkeyPatch, probe_works_s: float, exchanges: int
) -> None:
    """A probe of 20 messages that works for 12 ms: 0.6 ms a message, which is 0.5 % of 12 steps; at most of 25."""
    clock = itertools.count()
    monkeypatch.setattr(tuner.time, "process_time", lambda: next(clock) * probe_works_s)
    sent = []
    monkeypatch.setattr(Twins, "all_reduce", lambda self, vector, op: sent.append(vector) or Twins.Arrived(vector))
    Drive(replace(auto(FAST), choices=(AllGather(),))).steps(20 + 99, lambda dense: 0.010)
    assert len(sent) == exchanges


@each("dense", [True, False])
def test_steps_that_become_shorter_are_a_reason_to_probe_unless_dense(
    probe: list[Link], monkeypatch: pytest.MonkeyPatch, dense: bool
) -> None:
    """Dense steps that become shorter leave nothing to gain; sparse ones say that the link may do for dense now."""
    link = probe[0] = FAST if dense else SLOW
    monkeypatch.setattr(tuner, "remeasure", lambda comm, last: link)
    drive = Drive(auto(link)).steps(100, lambda is_dense: 0.010 if is_dense == dense else 0.1)
    assert not drive.tuner.trying
    assert drive.dense is dense
    probes = []
    monkeypatch.setattr(tuner, "remeasure", lambda comm, last: probes.append(last) or link)
    soon = drive.tuner._until_probe - 1
    assert soon > 15
    drive.steps(soon, lambda is_dense: 0.006)
    assert bool(probes) is not dense


def test_slow_drift_is_no_sudden_change(probe: list[Link], monkeypatch: pytest.MonkeyPatch) -> None:
    drive = Drive(replace(auto(FAST), choices=(AllGather(),))).steps(30, lambda dense: 0.010)
    probes = []
    monkeypatch.setattr(tuner, "remeasure", lambda comm, last: probes.append(last) or FAST)
    for step_s in (0.012, 0.014, 0.0165):  # the last would be 1.65 times the first
        drive.steps(28, lambda dense, step_s=step_s: step_s)
    assert not probes


@each(("at", "most"), [(30, 8), (40, 15)], ids=["ends it", "its last pair says dense, the step times not"])
def test_a_link_that_slows_down_in_the_middle_of_a_trial(probe: list[Link], at: int, most: int) -> None:
    probe[0] = FAST
    drive = Drive(auto(FAST)).steps(at, lambda dense: 0.010 if dense else 0.011)
    assert drive.tuner.trying
    probe[0] = SLOW
    slow = []

    def seconds(dense: bool) -> float:
        slow.append(dense)
        return 0.3 if dense else 0.015

    drive.steps(60, seconds)
    assert drive.auto.way != "dense"
    assert sum(slow) <= most


def test_trials_that_lose_cost_little(probe: list[Link]) -> None:
    steps = 20_000
    took_s = Drive(auto(FAST)).steps(steps, lambda dense: 0.019 if dense else 0.010).took_s
    assert 1 < took_s / (0.010 * steps) < 1.01 + 20 * 0.009 / (0.010 * steps)


def test_without_dense_among_the_candidates_nothing_is_tried(probe: list[Link]) -> None:
    ended = Drive(replace(auto(FAST), choices=(AllGather(), Split()))).steps(200, lambda dense: 0.01).auto
    assert ended.trial is None
    assert ended.way == "predicted"
