"""A stop-watch that runs all cases in turn, round after round, so that a busy machine is busy for all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(eq=False)
class Case:
    """Something to time.

    Attributes:
        name: for messages.
        run: what is timed; takes the number of the round.
        prepare: what comes before it, untimed; takes the number of the round.
        times: seconds of each round.
        skipped: why it was not measured, or empty.
        always: measure it whatever it needs, because others are compared with it.
    """

    name: str
    run: Callable[[int], object]
    prepare: Callable[[int], object] = lambda _: None
    times: list[float] = field(default_factory=list)
    skipped: str = ""
    always: bool = False


class TimeSpread(NamedTuple):
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> TimeSpread:
    """Return the median and the quartiles.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
        TimeSpread(median=3.0, low=2.0, high=4.0)
    """
    if len(values) == 1:
        return TimeSpread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return TimeSpread(median, low, high)


def interleave(
    cases: Sequence[Case], rounds: int, *, budget_s: float = float("inf"), tick: Callable[[], None] = lambda: None
) -> None:
    """Time every case once a round, starting with another case each round; fills ``times`` or ``skipped``.

    A round ahead of the first is not counted: it fills caches and hints, and tells which cases would need more than
    ``budget_s`` in all. Those are skipped. Python's garbage collector rests meanwhile.

    Args:
        cases: what to time; those that have ``skipped`` set already are left out.
        rounds: measurements of each case, at least 1.
        budget_s: most seconds that all rounds of one case may take.
        tick: called after each round.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        for case in cases:
            if not case.skipped:
                needed_s = _once(case, 0) * rounds
                if needed_s > budget_s and not case.always:
                    case.skipped = f"{rounds} runs need about {needed_s:.0f} s"
        tick()
        running = [case for case in cases if not case.skipped]
        for turn in range(1, rounds + 1):
            first = turn % max(1, len(running))
            for case in running[first:] + running[:first]:
                case.times.append(_once(case, turn))
            tick()
    finally:
        if collected:
            gc.enable()


def _once(case: Case, turn: int) -> float:
    case.prepare(turn)
    started = time.perf_counter()
    case.run(turn)
    return time.perf_counter() - started


def ratios(over: Sequence[float], under: Sequence[float]) -> TimeSpread:
    """Return median and quartiles of ``over / under``, round by round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])
