from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from gaussiank.autotune import Auto, Link, tuner
from gaussiank.autotune.tuner import _BLOCK, _WORTH, Pilot, _Bill, _faster, _Trial
from gaussiank.codec import Wire
from gaussiank.collectives import AllGather, DenseAllReduce, Split
from gaussiank.comm import Communicator

FAST, SLOW = Link(5e-5, 2.5e8, 1e-9, 1e-4), Link(2e-4, 1.25e6, 1e-9, 4e-4)
BILL = _Bill([(61_706, 62)], 4, Wire.parse("rice+bf16"))


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
def look(monkeypatch: pytest.MonkeyPatch) -> list[Link]:
    """The link that looking finds, in a list so that a test can change it."""
    found = [FAST]
    monkeypatch.setattr(tuner, "look_again", lambda line, last: found[0])
    monkeypatch.setattr(tuner, "row", lambda line, numbers: torch.tensor(numbers, dtype=torch.float64))
    monkeypatch.setattr(tuner, "slowest", lambda line, seconds: list(seconds))
    return found


def auto(link: Link) -> Auto:
    return Auto(link=link, choices=(DenseAllReduce(), AllGather(), Split()), pilot=Pilot(100))


def drive(chosen: Auto, steps: int, seconds: Callable[[bool], float]) -> tuple[Auto, float]:
    """Take steps; ``seconds`` tells how long one takes that sends everything, or not. Returns the time of all."""
    assert chosen.pilot is not None
    total = 0.0
    for _ in range(steps):
        step_s = seconds(BILL.dense(chosen))
        total += step_s
        chosen = chosen.pilot._after(step_s, chosen, cast(Communicator, Twins()), BILL)
    return chosen, total


@pytest.mark.parametrize("slow_from", [100, 10_000])
def test_resting_changes_no_decision(look: list[Link], monkeypatch: pytest.MonkeyPatch, slow_from: int) -> None:
    """Every step is steered, or only those that do not rest: the same ways, trials and counts at each of them."""
    now = 1.0
    monkeypatch.setattr(tuner.time, "perf_counter", lambda: now)
    monkeypatch.setattr(tuner, "Communicator", lambda group: Twins())
    histories: list[list[Any]] = []
    rested = 0
    for resting in (False, True):
        now, look[0], chosen, history = 1.0, FAST, auto(FAST), []
        for step in range(600):
            if not (resting and chosen.rests()):
                chosen = chosen.at_step(cast(Any, None), BILL.buckets, BILL.wire)
            else:
                rested += 1
            assert chosen.pilot is not None
            history.append((chosen.way, chosen.trial, chosen.link, chosen.pilot._left, chosen.pilot._elapsed_s))
            look[0] = SLOW if step >= slow_from else FAST
            now += (0.3 if look[0] is SLOW else 0.010) if BILL.dense(chosen) else 0.015
        histories.append(history)
    assert histories[0] == histories[1]
    assert rested > 300


def test_what_proves_faster_stays(look: list[Link]) -> None:
    start = auto(FAST)
    assert not BILL.dense(start)
    ended, _ = drive(start, 120, lambda dense: 0.010 if dense else 0.012)
    assert ended.way == "dense"
    assert not ended.pilot.tries
    assert ended.trial is None
    ended, _ = drive(auto(FAST), 120, lambda dense: 0.012 if dense else 0.010)
    assert not BILL.dense(ended)
    assert ended.trial is None


@pytest.mark.parametrize(
    ("percent", "pairs", "dense"),
    [
        ([-10] * 9, 5, False),  # how much longer sparse takes than what is worth it
        ([10] * 9, 4, True),  # ranks 1 to 4: more than 8 against
        ([-10, -20, -15, 5, -18, -12, 6, -25, -8], 9, False),  # ranks 1 and 2 of nine against
        ([-10, -20, -15, 5, 18, -12, 6, -25, -8], 7, True),  # ranks 1, 2 and 6 of seven
        ([30, -1, -1, -1, -1, -1, -1, -1, -2], 9, True),  # one, but of rank 9
    ],
)
def test_a_trial_ends_as_soon_as_it_is_decided(look: list[Link], percent: list[int], pairs: int, dense: bool) -> None:
    chosen = auto(FAST)
    assert chosen.pilot is not None
    trial = chosen.pilot._trial = _Trial("dense")
    while chosen.pilot._trial is not None:
        sparse_s = 0.010 * _WORTH * (1 + percent[trial.taken // (2 * _BLOCK)] / 100)
        trial.note(0.010 if trial.tries else sparse_s)
        if trial.judged:
            chosen = chosen.pilot._judge(trial, chosen, cast(Communicator, Twins()), BILL)
    assert not chosen.pilot.tries
    assert trial.taken == pairs * 2 * _BLOCK
    assert BILL.dense(chosen) is dense


def test_chance_seldom_speaks_for_sparse() -> None:
    """Of all signs of nine pairs with ranks 1 to 9, about one in twenty is taken for a sparse way that is worth it."""
    found = [
        _faster([_WORTH * math.exp(sign * rank / 100) for rank, sign in enumerate(signs, 1)], [1.0] * 9, clear=False)
        for signs in itertools.product((1, -1), repeat=9)
    ]
    assert found.count("sparse") / len(found) == pytest.approx(0.049, abs=0.001)
    assert None not in found


def test_what_would_take_twice_as_long_is_not_tried(look: list[Link]) -> None:
    look[0] = SLOW
    dense_steps = []

    def seconds(dense: bool) -> float:
        dense_steps.append(dense)
        return 0.5 if dense else 0.015

    drive(auto(SLOW), 1000, seconds)
    assert not any(dense_steps)


def test_one_bad_look_does_not_make_a_link_slow(look: list[Link], monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([SLOW, FAST])
    monkeypatch.setattr(tuner, "look_again", lambda line, last: next(looks))
    ended, _ = drive(auto(FAST), 20, lambda dense: 0.010)
    assert ended.link == FAST
    assert next(looks, None) is None, "both were taken at the first look"


def test_a_link_that_slows_down_is_noticed_soon(look: list[Link]) -> None:
    ended, _ = drive(auto(FAST), 100, lambda dense: 0.010 if dense else 0.012)
    assert BILL.dense(ended)
    look[0] = SLOW
    ended, took_s = drive(ended, 60, lambda dense: 0.3 if dense else 0.015)
    assert not BILL.dense(ended)
    assert took_s < 25 * 0.3 + 60 * 0.015


def test_a_link_that_slows_down_is_noticed_soon_after_a_trial_that_has_cost_much(look: list[Link]) -> None:
    tried = []

    def seconds(dense: bool) -> float:
        tried.append(not dense)
        return 0.010 if dense else 0.019

    ended, _ = drive(auto(FAST), 400, seconds)
    assert BILL.dense(ended)
    assert any(tried[100:]), "sparse was tried once more, in vain"
    look[0] = SLOW
    ended, took_s = drive(ended, 60, lambda dense: 0.3 if dense else 0.015)
    assert not BILL.dense(ended)
    assert took_s < 25 * 0.3 + 60 * 0.015


@pytest.mark.parametrize(("look_works_s", "tellings"), [(0.0, 9), (0.012, 8), (0.040, 3)])
def test_tellings_become_rare_where_they_cost_much(
    look: list[Link], monkeypatch: pytest.MonkeyPatch, look_works_s: float, tellings: int
) -> None:
    """A look of 20 messages that works for 12 ms: 0.6 ms a telling, which is 0.5 % of 12 steps; at most of 25."""
    clock = itertools.count()
    monkeypatch.setattr(tuner.time, "process_time", lambda: next(clock) * look_works_s)
    sent = []
    monkeypatch.setattr(Twins, "all_reduce", lambda self, vector, op: sent.append(vector) or Twins.Arrived(vector))
    drive(replace(auto(FAST), choices=(AllGather(),)), 20 + 99, lambda dense: 0.010)
    assert len(sent) == tellings


@pytest.mark.parametrize("dense", [True, False])
def test_steps_that_become_shorter_are_a_reason_to_look_unless_dense(
    look: list[Link], monkeypatch: pytest.MonkeyPatch, dense: bool
) -> None:
    """Dense steps that become shorter leave nothing to gain; sparse ones say that the link may do for dense now."""
    link = look[0] = FAST if dense else SLOW
    chosen, _ = drive(auto(link), 100, lambda is_dense: 0.010 if is_dense == dense else 0.1)
    assert not chosen.pilot.tries
    assert BILL.dense(chosen) is dense
    looks = []
    monkeypatch.setattr(tuner, "look_again", lambda line, last: looks.append(last) or link)
    assert chosen.pilot is not None
    soon = chosen.pilot._left - 1
    assert soon > 15
    drive(chosen, soon, lambda is_dense: 0.006)
    assert bool(looks) is not dense


def test_slow_drift_is_no_sudden_change(look: list[Link], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, _ = drive(replace(auto(FAST), choices=(AllGather(),)), 30, lambda dense: 0.010)
    looks = []
    monkeypatch.setattr(tuner, "look_again", lambda line, last: looks.append(last) or FAST)
    for step_s in (0.012, 0.014, 0.0165):  # the last would be 1.65 times the first
        chosen, _ = drive(chosen, 28, lambda dense, step_s=step_s: step_s)
    assert not looks


@pytest.mark.parametrize(
    ("at", "most"), [(30, 8), (40, 15)], ids=["ends it", "its last pair says dense, the pulse not"]
)
def test_a_link_that_slows_down_in_the_middle_of_a_trial(look: list[Link], at: int, most: int) -> None:
    ended, _ = drive(auto(FAST), at, lambda dense: 0.010 if dense else 0.011)
    assert ended.pilot is not None
    assert ended.pilot._trial is not None
    assert ended.pilot.tries
    look[0] = SLOW
    slow = []

    def seconds(dense: bool) -> float:
        slow.append(dense)
        return 0.3 if dense else 0.015

    ended, _ = drive(ended, 60, seconds)
    assert ended.way != "dense"
    assert sum(slow) <= most


def test_trials_that_lose_cost_little(look: list[Link]) -> None:
    steps = 20_000
    _, took_s = drive(auto(FAST), steps, lambda dense: 0.019 if dense else 0.010)
    assert 1 < took_s / (0.010 * steps) < 1.01 + 20 * 0.009 / (0.010 * steps)


def test_without_dense_among_the_candidates_nothing_is_tried(look: list[Link]) -> None:
    start = replace(auto(FAST), choices=(AllGather(), Split()))
    ended, _ = drive(start, 200, lambda dense: 0.01)
    assert ended.trial is None
    assert ended.way == "predicted"


def test_every_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match=r"every must be at least 0, got -1\."):
        Auto(every=-1)
