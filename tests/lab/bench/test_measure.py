from __future__ import annotations

import gc

import pytest

from gaussiank_lab.bench import measure
from gaussiank_lab.bench.measure import Case, TimeSpread, interleave, ratios, spread


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless a case moves it."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    return now


def test_cases_take_turns_and_the_first_one_changes(clock: list[float]) -> None:
    seen: list[tuple[str, int]] = []
    cases = [Case(name, lambda turn, name=name: seen.append((name, turn))) for name in "abc"]  # type: ignore[misc]
    rounds: list[int] = []
    interleave(cases, 3, tick=lambda: rounds.append(len(seen)))
    assert "".join(name for name, _ in seen) == "abc" + "bca" + "cab" + "abc"
    assert [turn for _, turn in seen] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert rounds == [3, 6, 9, 12]


def test_times_are_those_of_run_alone_without_the_first(clock: list[float]) -> None:
    def run(turn: int) -> None:
        clock[0] += 100.0 if turn == 0 else turn

    def prepare(_: int) -> None:
        clock[0] += 1000.0

    case = Case("case", run, prepare)
    interleave([case], 3)
    assert case.times == [1.0, 2.0, 3.0]
    assert not case.skipped


def test_what_needs_too_long_is_skipped_and_says_so(clock: list[float]) -> None:
    def run(_: int) -> None:
        clock[0] += 3.0

    slow, told = Case("slow", run), Case("told", run, skipped="known to be slow")
    fast = Case("fast", lambda _: None)
    interleave([slow, fast, told], 7, budget_s=20.0)
    assert clock[0] == 3.0
    assert (slow.times, slow.skipped) == ([], "7 runs need about 21 s")
    assert (told.times, told.skipped) == ([], "known to be slow")
    assert fast.times == [0.0] * 7
    wanted = Case("wanted", run, always=True)
    interleave([wanted], 7, budget_s=20.0)
    assert (wanted.times, wanted.skipped) == ([3.0] * 7, "")


def test_the_collector_rests_and_comes_back() -> None:
    states: list[bool] = []
    interleave([Case("case", lambda _: states.append(gc.isenabled()))], 1)
    assert states == [False, False]
    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt):
        interleave([Case("stop", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))], 1)
    assert gc.isenabled()


def test_spread_and_ratios() -> None:
    assert spread([4.0]) == TimeSpread(4.0, 4.0, 4.0)
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == TimeSpread(3.0, 2.0, 4.0)
    assert ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == TimeSpread(2.0, 1.5, 2.5)
