"""Pilot: follows the link while training, and gives way to what proves faster; every worker decides the same.

What a worker measures is its own, so nothing is decided by it: numbers are first exchanged, and the slowest worker's
count. All of it happens between two steps, before anything of the next one is sent.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch.distributed as dist
from torch import Tensor

from gaussiank.codec import Wire

from .line import Line, Message
from .link import look_again, row, slowest

if TYPE_CHECKING:
    from .auto import Auto

Way = Literal["predicted", "dense", "sparse"]

_LOG = logging.getLogger("gaussiank")
_PULSE = 10  # steps between two tellings of how long steps take
_CHANGED = 1.5  # times longer or shorter: look at the link at once, and try again
_OFTEN = 20  # steps before the first look
_LOOKING, _TRYING = 0.005, 0.01  # share of the time, at most, that looks and trials cost
_BLOCKS, _BLOCK = 9, 4  # a trial: so often so many steps one way, then as many the other
_WORTH = 0.96  # of a dense step, at most, for a sparse one: the exact mean is worth the rest
_MOSTLY = 0.75  # of the pairs of blocks in which sparse must be worth it: steps differ by a tenth from noise alone
_CLEAR = 2.0  # so much longer or shorter in two blocks: no need to go on, or the link has changed meanwhile


@dataclass(frozen=True)
class _Bill:
    """What a step exchanges, and what that should cost."""

    buckets: Sequence[tuple[int, int]]
    world_size: int
    wire: Wire

    def dense(self, auto: Auto) -> bool:
        return all(auto.chooses_dense(numel, k, self.world_size, self.wire) for numel, k in self.buckets)

    def predicted_s(self, auto: Auto) -> float:
        return sum(
            auto.predicted_s(auto.choose(numel, k, self.world_size, self.wire), numel, k, self.world_size, self.wire)
            for numel, k in self.buckets
        )


@dataclass
class _Trial:
    """Steps in turn the other way and the present one, and how long they took; the first of a block does not count."""

    other: Way
    taken: int = 0
    times: dict[bool, list[list[float]]] = field(default_factory=lambda: {False: [], True: []})

    @property
    def tries(self) -> bool:
        """Whether the next step goes the other way."""
        return self.taken // _BLOCK % 2 == 0

    @property
    def judged(self) -> bool:
        """Whether both ways have had as many blocks."""
        return self.taken % (2 * _BLOCK) == 0

    @property
    def ended(self) -> bool:
        """Whether all blocks are through."""
        return self.taken == 2 * _BLOCKS * _BLOCK

    def medians(self) -> list[float]:
        """Return seconds of a step in each block, of those the other way and then of the present one's."""
        return [statistics.median(block) for way in (True, False) for block in self.times[way]]

    def note(self, step_s: float) -> None:
        """Count the step that has just ended."""
        if not self.taken % _BLOCK:
            self.times[self.tries].append([])
        else:
            self.times[self.tries][-1].append(step_s)
        self.taken += 1


class Pilot:
    """Watch the steps of one model, and revise its ``Auto``.

    Args:
        every: steps between two looks at the link; more where looking would take above 0.5 % of the time.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._left = min(every, _OFTEN)
        self._recent: deque[float] = deque(maxlen=_PULSE)
        self._usual_s = 0.0  # a step, as agreed at the last look
        self._pulse: Message[Tensor] | None = None
        self._trial: _Trial | None = None
        self._patience, self._until_trial = 1, 1  # looks
        self._elapsed_s = self._tried_s = 0.0  # as agreed: in all, and what trials have cost
        self._judged_bytes_s = math.inf  # the link of the last trial
        self._began = 0.0

    @property
    def tries(self) -> bool:
        """Whether the other way is on trial."""
        return self._trial is not None

    def rests(self) -> bool:
        """Count a step in which ``steer`` would have nothing to say or to send; otherwise count nothing.

        Whether it is so follows from numbers that all workers share.
        """
        left = self._left - 1
        if not self._began or self._trial or self._pulse or left <= 0 or self._tells(left):
            return False
        now = time.perf_counter()
        self._note(now - self._began)
        self._left, self._began = left, now
        return True

    def steer(self, auto: Auto, group: dist.ProcessGroup, buckets: Sequence[tuple[int, int]], wire: Wire) -> Auto:
        """Return what to use in the step that begins.

        Args:
            auto: what was used in the last one.
            group: what to send with; all its workers must call this at the same step.
            buckets: numel and k of each exchange in the last step.
            wire: how entries travel.
        """
        step_s = time.perf_counter() - self._began
        line = Line(group)
        if self._began and line.world_size > 1 and buckets:
            auto = self._after(step_s, auto, line, _Bill(buckets, line.world_size, wire))
        self._began = time.perf_counter()
        return auto

    def _after(self, step_s: float, auto: Auto, line: Line, bill: _Bill) -> Auto:
        self._note(step_s)
        if self._trial is not None:
            self._trial.note(step_s)
            return self._judge(self._trial, auto, line, bill) if self._trial.judged else self._on_trial(auto)
        self._left -= 1
        changed = self._feel(line)
        if self._left <= 0 or changed:
            auto = self._look(auto, line)
            if self._may_try(auto, bill, changed):
                self._trial = _Trial("sparse" if bill.dense(auto) else "dense")
                return self._on_trial(auto)
        return auto

    def _feel(self, line: Line) -> bool:
        """Tell whether steps have become longer or shorter; the message travels during a step."""
        changed = False
        if self._pulse is not None:
            ratio = float(self._pulse.wait()) / self._usual_s
            self._pulse, changed = None, not 1 / _CHANGED < ratio < _CHANGED
        elif self._tells(self._left):
            self._pulse = line.all_reduce(row(line, [self._median()]), dist.ReduceOp.MAX)
        return changed

    def _tells(self, left: int) -> bool:
        """Tell whether the workers tell each other how long steps take, so many steps before the next look."""
        return left % _PULSE == 0 and self._usual_s > 0

    def _note(self, step_s: float) -> None:
        self._elapsed_s += self._usual_s
        self._recent.append(step_s)

    def _look(self, auto: Auto, line: Line) -> Auto:
        """Measure the link again."""
        assert auto.link is not None  # joined
        if self._pulse is not None:
            self._pulse.wait()
            self._pulse = None
        began = time.perf_counter()
        link = look_again(line, auto.link)
        if _CHANGED * link.bytes_per_s < auto.link.bytes_per_s:  # or the workers were in each other's way
            link = max(link, look_again(line, auto.link), key=lambda one: one.bytes_per_s)
        self._usual_s, took_s = slowest(line, [self._median(), time.perf_counter() - began])
        self._recent.clear()
        self._left = max(self._every, int(took_s / (_LOOKING * self._usual_s)))
        return replace(auto, link=link)

    def _may_try(self, auto: Auto, bill: _Bill, changed: bool) -> bool:
        """Tell whether the other way is due for a trial, and worth it: no step of it should take twice as long."""
        assert auto.link is not None  # joined
        there = replace(auto, way="sparse" if bill.dense(auto) else "dense")
        loss_s = bill.predicted_s(there) - bill.predicted_s(auto)
        self._until_trial -= 1
        due = (self._until_trial <= 0 or changed) and self._tried_s <= _TRYING * self._elapsed_s
        if not due:  # whatever trials have cost: what was found out on another link says nothing
            due = changed and loss_s < 0 and not 1 / _CHANGED < auto.link.bytes_per_s / self._judged_bytes_s < _CHANGED
        if not due:
            return False
        self._patience *= 2
        self._until_trial = self._patience
        self._judged_bytes_s = auto.link.bytes_per_s
        return bill.dense(there) != bill.dense(auto) and loss_s < self._usual_s

    def _on_trial(self, auto: Auto) -> Auto:
        assert self._trial is not None
        return replace(auto, trial=self._trial.other if self._trial.tries else None)

    def _judge(self, trial: _Trial, auto: Auto, line: Line, bill: _Bill) -> Auto:
        """Take the way that is worth it on the slowest worker, or go on where it is not clear yet."""
        medians = slowest(line, trial.medians())
        other, present = medians[: len(medians) // 2], medians[len(medians) // 2 :]
        if not 1 / _CLEAR < other[-1] / present[-1] < _CLEAR:
            other, present = other[-1:], present[-1:]
        elif not trial.ended:
            return self._on_trial(auto)
        self._trial = None
        self._recent.clear()
        other_s, present_s = statistics.median(other), statistics.median(present)
        self._tried_s += max(0.0, other_s - present_s) * trial.taken / 2
        sparse, dense = (other, present) if trial.other == "sparse" else (present, other)
        worth = statistics.fmean(one < _WORTH * another for one, another in zip(sparse, dense, strict=True))
        best: Way = "sparse" if worth >= _MOSTLY else "dense"
        self._usual_s = other_s if best == trial.other else present_s
        if line.rank == 0:
            times_ms = [1e3 * statistics.median(blocks) for blocks in (sparse, dense)]
            _LOG.info("auto: a step takes %.1f ms sparse, %.1f ms dense: %s", *times_ms, best)
        keeps = best == "sparse" != trial.other  # as predicted, with what is dense among it
        return replace(auto, trial=None, way=auto.way if keeps else best)

    def _median(self) -> float:
        return statistics.median(self._recent)
