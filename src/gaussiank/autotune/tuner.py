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
from gaussiank.comm import Communicator, Work

from .link_probe import look_again, row, slowest

if TYPE_CHECKING:
    from .policy import Auto

Way = Literal["predicted", "dense", "sparse"]

_LOG = logging.getLogger("gaussiank")
_PULSE, _RARE = 10, 25  # steps between two tellings of how long steps take; up to so many where they cost too much
_CHANGED = 1.5  # times longer or shorter: look at the link at once, and try again
_OFTEN = 20  # steps before the first look
_LOOKING, _TELLING, _TRYING = 0.003, 0.005, 0.005  # share of the time that looks, tellings and trials may cost
_MESSAGES = 20  # of a look: each works a processor as long as a telling does, or longer
_BLOCKS, _BLOCK = 9, 4  # a trial: so often, at most, so many steps one way, then as many the other
_WORTH = 0.96  # of a dense step, at most, for a sparse one: the exact mean is worth the rest
_AGAINST = 8  # rank sum, at most, of the pairs of blocks that deny it: of nine, by chance in one of twenty trials
_AGREE = 5  # pairs that are enough where none denies it
_CLEAR = 4.0  # so much longer or shorter in the last two pairs, multiplied: no need to go on, or the link has changed
_FADES = 0.25  # share that a telling has in how long steps usually take


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
        every: steps between two looks at the link; more where looking would take above 0.3 % of the time.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._left = min(every, _OFTEN)
        self._recent: deque[float] = deque(maxlen=_PULSE)
        self._usual_s = 0.0  # a step, as agreed
        self._quiet, self._rare = self._left + _PULSE, _PULSE  # steps until the next telling, and between two of them
        self._pulse: Work[Tensor] | None = None
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
        if not self._began or self._trial or self._pulse or self._left <= 1 or self._quiet <= 1:
            return False
        now = time.perf_counter()
        self._note(now - self._began)
        self._began = now
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
        comm = Communicator(group)
        if self._began and comm.world_size > 1 and buckets:
            auto = self._after(step_s, auto, comm, _Bill(buckets, comm.world_size, wire))
        self._began = time.perf_counter()
        return auto

    def _after(self, step_s: float, auto: Auto, comm: Communicator, bill: _Bill) -> Auto:
        if self._trial is not None:
            self._elapsed_s += self._usual_s
            self._trial.note(step_s)
            return self._judge(self._trial, auto, comm, bill) if self._trial.judged else self._on_trial(auto)
        self._note(step_s)
        changed = self._feel(comm, dense=bill.dense(auto))
        if self._left <= 0 or changed:
            auto = self._look(auto, comm)
            if self._may_try(auto, bill, changed):
                self._trial = _Trial("sparse" if bill.dense(auto) else "dense")
                return self._on_trial(auto)
        return auto

    def _feel(self, comm: Communicator, *, dense: bool) -> bool:
        """Tell whether steps have become so long, or short, that the link must have changed.

        The message travels during a step. Dense steps that become shorter are no reason to try anything else.
        """
        if self._pulse is None:
            if self._quiet <= 0 and self._usual_s:
                self._pulse = comm.all_reduce(row(comm, [self._median()]), dist.ReduceOp.MAX)
                self._quiet = self._rare
            return False
        told_s = float(self._pulse.wait())
        self._pulse = None
        if told_s >= _CHANGED * self._usual_s or (told_s <= self._usual_s / _CHANGED and not dense):
            return True
        self._usual_s += _FADES * (told_s - self._usual_s)
        return False

    def _note(self, step_s: float) -> None:
        self._left -= 1
        self._quiet -= 1
        self._elapsed_s += self._usual_s
        self._recent.append(step_s)

    def _look(self, auto: Auto, comm: Communicator) -> Auto:
        """Measure the link again."""
        assert auto.link is not None  # joined
        if self._pulse is not None:
            self._pulse.wait()
            self._pulse = None
        began, worked = time.perf_counter(), time.process_time()
        link = look_again(comm, auto.link)
        telling_s = (time.process_time() - worked) / _MESSAGES
        if _CHANGED * link.bytes_per_s < auto.link.bytes_per_s:  # or the workers were in each other's way
            link = max(link, look_again(comm, auto.link), key=lambda one: one.bytes_per_s)
        numbers = [self._median(), time.perf_counter() - began, telling_s]
        self._usual_s, took_s, telling_s = slowest(comm, numbers)
        self._recent.clear()
        self._left = max(self._every, int(took_s / (_LOOKING * self._usual_s)))
        self._quiet = self._rare = min(max(_PULSE, int(telling_s / (_TELLING * self._usual_s))), _RARE)
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

    def _judge(self, trial: _Trial, auto: Auto, comm: Communicator, bill: _Bill) -> Auto:
        """Take the way that is worth it on the slowest worker, once no block to come can change that."""
        medians = slowest(comm, trial.medians())
        other, present = medians[: len(medians) // 2], medians[len(medians) // 2 :]
        clear = not 1 / _CLEAR < math.prod(other[-2:]) / math.prod(present[-2:]) < _CLEAR
        if clear:
            other, present = other[-1:], present[-1:]
        sparse, dense = (other, present) if trial.other == "sparse" else (present, other)
        best = _faster(sparse, dense, clear=clear)
        if best is None:
            return self._on_trial(auto)
        self._trial = None
        self._recent.clear()
        other_s, present_s = statistics.median(other), statistics.median(present)
        self._tried_s += max(0.0, other_s - present_s) * trial.taken / 2
        self._usual_s, self._quiet = other_s if best == trial.other else present_s, self._rare
        if comm.rank == 0:
            times_ms = [1e3 * statistics.median(blocks) for blocks in (sparse, dense)]
            _LOG.info("auto: a step takes %.1f ms sparse, %.1f ms dense: %s", *times_ms, best)
        keeps = best == "sparse" != trial.other  # as predicted, with what is dense among it
        return replace(auto, trial=None, way=auto.way if keeps else best)

    def _median(self) -> float:
        return statistics.median(self._recent)


def _faster(sparse: Sequence[float], dense: Sequence[float], *, clear: bool) -> Way | None:
    """Return the way that is worth it, from seconds of a step in pairs of blocks; None where more of them may tell.

    Wilcoxon's signed-rank test of sparse steps taking less than ``_WORTH`` of dense ones. More pairs never lower the
    rank sum of those that deny it, so the trial ends when that is too large. Only divisions, which come out alike on
    every machine: a logarithm need not, and all workers must find the same.
    """
    ratios = sorted(
        (one / (_WORTH * another) for one, another in zip(sparse, dense, strict=True)),
        key=lambda one: max(one, 1 / one),
    )
    against = sum(rank for rank, ratio in enumerate(ratios, 1) if ratio >= 1)
    if against > (0 if clear else _AGAINST):
        return "dense"
    return "sparse" if clear or len(ratios) >= (_BLOCKS if against else _AGREE) else None
