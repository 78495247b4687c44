"""Tuner: follows the link while training, and gives way to what proves faster; every worker decides the same.

What a worker measures is its own, so nothing is decided by it: numbers are first exchanged, and the slowest worker's
count. All of it happens between two steps, before anything of the next one is sent. Three loops run beside each other:

1. *Step times.* Every 10 to 25 steps workers exchange how long theirs take, by a message that travels during a step.
2. *Link probes.* Every ``every`` steps, and at once when step times have changed, the link is measured again.
3. *Trials.* After a probe, more and more rarely unless step times change, the other way (all dense, or sparse) takes
   turns with the present one, in blocks of steps. The verdict is a signed-rank test over pairs of blocks: sparse has to
   be at least 4 % faster. What is not on trial is predicted by the formulas.

Each loop may cost a given share of the time, and what trials cost is counted. Where none of them has anything to do, a
step is only counted (``try_skip``).
"""

from __future__ import annotations

import ctypes
import logging
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank import ops
from gaussiank.codec import Wire
from gaussiank.comm import Communicator, Work

if TYPE_CHECKING:
    from .policy import Auto


# ---------------------------------------------------------------------- the link: given, or measured, the same on all


PROBE_BYTES = 1 << 22
"""Most bytes of a message that measures the link."""
_LONGER = 16  # times the message before, where that was over too soon to tell; then it takes so many times as long
_AT_ONCE_BYTES = 1 << 28  # that arrive of such messages, on an accelerator: one tells what it takes to start it
_SELECTED_NUMEL = 1 << 18  # on a CPU
_SELECTED_THERE = 1 << 24  # on an accelerator, which is done with less before it was told to begin


@dataclass(frozen=True)
class Link:
    """A link between two workers, and how fast they fill it.

    Args:
        latency_s: seconds that the shortest message takes between two workers.
        bytes_per_s: bytes a second in one direction.
        select_s: seconds for each entry of a gradient that accumulation and selection take.
        straight_s: seconds that the shortest message takes from each worker to all others at once.
    """

    latency_s: float
    bytes_per_s: float
    select_s: float
    straight_s: float


def measure(group: dist.ProcessGroup | None = None) -> Link:
    """Time short and long messages, and a selection, on all workers at once.

    Of several tries the fastest counts, and of all workers the slowest, so that all get the same numbers.

    Args:
        group: process group, or None for the default one; all its workers must call it. One worker has a perfect link.
    """
    comm = Communicator(group)
    if comm.world_size == 1:
        return Link(0.0, float("inf"), 0.0, 0.0)
    numel = _SELECTED_NUMEL if _device(comm) == "cpu" else _SELECTED_THERE
    select_s = min(_selection_s(comm, numel) for _ in range(3)) / numel
    return _speed(comm, 1 << 16, select_s, enough_s=0.02, tries=9)


def remeasure(comm: Communicator, last: Link) -> Link:
    """Measure latency and bandwidth again, with shorter messages and fewer.

    They begin short again whatever the link was: a message for a fast link takes seconds when it has become slow.

    Args:
        comm: connects at least two workers, all of which must call it.
        last: what was measured before.
    """
    return _speed(comm, 1 << 14, last.select_s, enough_s=0.0025, tries=2)


def max_over_workers(comm: Communicator, seconds: Sequence[float]) -> list[float]:
    """Return the largest of all workers' numbers, each for itself; all workers must call it."""
    return [float(most) for most in comm.all_reduce(as_tensor(comm, seconds), dist.ReduceOp.MAX).wait()]


def as_tensor(comm: Communicator, numbers: Sequence[float]) -> Tensor:
    """Return float64 numbers where the group's messages must be."""
    return torch.tensor(numbers, dtype=torch.float64, device=_device(comm))


def _device(comm: Communicator) -> str:
    """Return where the group's messages are: on the GPU where NCCL carries those, whatever a CPU has beside it."""
    return "cuda" if "cuda:nccl" in dist.get_backend_config(comm.group) else "cpu"


def _speed(comm: Communicator, length: int, select_s: float, *, enough_s: float, tries: int) -> Link:
    """Measure the shortest messages, and the bytes a second of one that takes long enough to tell."""
    peers = comm.world_size - 1
    zeros = torch.zeros(PROBE_BYTES, dtype=torch.uint8, device=_device(comm))
    max_over_workers(comm, [0.0])  # so that all begin together
    latency_s = min(_message_s(comm, zeros[:1]) for _ in range(tries)) / peers
    straight_s = min(_message_s(comm, zeros[:1], straight=True) for _ in range(tries))
    messages, most = 1, 1 if zeros.is_cpu else max(1, _AT_ONCE_BYTES // (PROBE_BYTES * comm.world_size))
    while True:
        took_s = _message_s(comm, zeros[:length], messages)
        longest = length >= PROBE_BYTES and messages >= most
        if took_s < 4 * enough_s and (took_s >= enough_s or longest):  # or noise; above, surely slow
            took_s = min(took_s, *(_message_s(comm, zeros[:length], messages) for _ in range(2)))
        sending_s = took_s - peers * latency_s  # what waiting adds must not pass for a slow link
        if sending_s >= enough_s or longest:
            _give_back()
            return Link(latency_s, peers * length * messages / max(sending_s, 1e-9), select_s, straight_s)
        if length < PROBE_BYTES:
            length = min(_LONGER * length, PROBE_BYTES)
        else:
            messages = min(_LONGER * messages, most)


def _give_back() -> None:
    """Let glibc return what a probe took: Gloo allocates as much again in its threads, whose arenas would keep it."""
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)


_MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _message_s(comm: Communicator, sent: Tensor, messages: int = 1, *, straight: bool = False) -> float:
    """Time messages that all workers begin together, and let them begin the next ones so."""
    began = time.perf_counter()
    works = [comm.all_gather(sent, straight=straight) for _ in range(messages)]
    works[-1].wait()[-1, -1:].cpu()  # they run in order; of a GPU's one byte tells, and no bus is measured
    return max_over_workers(comm, [time.perf_counter() - began])[0]


def _selection_s(comm: Communicator, numel: int) -> float:
    grad = torch.linspace(-1, 1, numel, dtype=torch.float32, device=_device(comm)).sin_()
    began = time.perf_counter()
    accumulated = ops.accumulate(grad, grad, out=torch.empty_like(grad))
    ops.select_topk(accumulated, numel // 1000).cpu()
    return max_over_workers(comm, [time.perf_counter() - began])[0]


# ---------------------------------------------------------------------- the tuner


Way = Literal["predicted", "dense", "sparse"]

_LOG = logging.getLogger(__name__)
_EXCHANGE_EVERY, _EXCHANGE_RARELY = 10, 25  # steps between two exchanges of step times; the latter where they are dear
_CHANGED = 1.5  # times longer or shorter: probe the link at once, and try again
_FIRST_PROBE = 20  # steps before it
_PROBE_SHARE, _EXCHANGE_SHARE, _TRIAL_SHARE = 0.003, 0.005, 0.005  # of the time, that each may cost
_PROBE_MESSAGES = 20  # each works a processor as long as the message of step times does, or longer
_BLOCKS, _BLOCK = 9, 4  # a trial: so often, at most, so many steps one way, then as many the other
_WORTH = 0.96  # of a dense step, at most, for a sparse one: the exact mean is worth the rest
_AGAINST = 8  # rank sum, at most, of the pairs of blocks that deny it: of nine, by chance in one of twenty trials
_AGREE = 5  # pairs that are enough where none denies it
_CLEAR = 4.0  # so much longer or shorter in the last two pairs, multiplied: no need to go on, or the link has changed
_SMOOTHING = 0.25  # share that a new step time has in the usual one


@dataclass(frozen=True)
class _StepCost:
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
    def trying(self) -> bool:
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
            self.times[self.trying].append([])
        else:
            self.times[self.trying][-1].append(step_s)
        self.taken += 1


class Tuner:
    """Watch the steps of one model, and revise its ``Auto``.

    Args:
        every: steps between two probes of the link; more where probing would take above 0.3 % of the time.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._until_probe = min(every, _FIRST_PROBE)
        self._recent: deque[float] = deque(maxlen=_EXCHANGE_EVERY)
        self._usual_s = 0.0  # a step, as agreed
        self._between_exchanges = _EXCHANGE_EVERY  # of step times, in steps
        self._until_exchange = self._until_probe + _EXCHANGE_EVERY
        self._pending: Work[Tensor] | None = None  # step times under way
        self._trial: _Trial | None = None
        self._between_trials, self._until_trial = 1, 1  # in probes
        self._elapsed_s = self._trials_cost_s = 0.0  # as agreed: in all, and what trials have cost
        self._judged_bytes_s = math.inf  # the link of the last trial
        self._began = 0.0

    @property
    def trying(self) -> bool:
        """Whether the other way is on trial."""
        return self._trial is not None

    def try_skip(self) -> bool:
        """Count a step in which ``update`` would have nothing to say or to send, and return True; else count nothing.

        Whether it is so follows from numbers that all workers share.
        """
        if not self._began or self._trial or self._pending or self._until_probe <= 1 or self._until_exchange <= 1:
            return False
        now = time.perf_counter()
        self._note(now - self._began)
        self._began = now
        return True

    def update(self, auto: Auto, group: dist.ProcessGroup, buckets: Sequence[tuple[int, int]], wire: Wire) -> Auto:
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
            auto = self._after(step_s, auto, comm, _StepCost(buckets, comm.world_size, wire))
        self._began = time.perf_counter()
        return auto

    def _after(self, step_s: float, auto: Auto, comm: Communicator, cost: _StepCost) -> Auto:
        if self._trial is not None:
            self._elapsed_s += self._usual_s
            self._trial.note(step_s)
            return self._judge(self._trial, auto, comm, cost) if self._trial.judged else self._on_trial(auto)
        self._note(step_s)
        changed = self._step_time_changed(comm, dense=cost.dense(auto))
        if self._until_probe <= 0 or changed:
            auto = self._probe(auto, comm)
            if self._trial_is_due(auto, cost, changed):
                self._trial = _Trial("sparse" if cost.dense(auto) else "dense")
                return self._on_trial(auto)
        return auto

    def _step_time_changed(self, comm: Communicator, *, dense: bool) -> bool:
        """Tell whether steps have become so long, or short, that the link must have changed.

        The message travels during a step. Dense steps that become shorter are no reason to try anything else.
        """
        if self._pending is None:
            if self._until_exchange <= 0 and self._usual_s:
                self._pending = comm.all_reduce(as_tensor(comm, [self._median()]), dist.ReduceOp.MAX)
                self._until_exchange = self._between_exchanges
            return False
        told_s = float(self._pending.wait())
        self._pending = None
        if told_s >= _CHANGED * self._usual_s or (told_s <= self._usual_s / _CHANGED and not dense):
            return True
        self._usual_s += _SMOOTHING * (told_s - self._usual_s)
        return False

    def _note(self, step_s: float) -> None:
        self._until_probe -= 1
        self._until_exchange -= 1
        self._elapsed_s += self._usual_s
        self._recent.append(step_s)

    def _probe(self, auto: Auto, comm: Communicator) -> Auto:
        """Measure the link again."""
        assert auto.link is not None  # joined
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        began, worked = time.perf_counter(), time.process_time()
        link = remeasure(comm, auto.link)
        exchange_s = (time.process_time() - worked) / _PROBE_MESSAGES
        if _CHANGED * link.bytes_per_s < auto.link.bytes_per_s:  # or the workers were in each other's way
            link = max(link, remeasure(comm, auto.link), key=lambda one: one.bytes_per_s)
        numbers = [self._median(), time.perf_counter() - began, exchange_s]
        self._usual_s, took_s, exchange_s = max_over_workers(comm, numbers)
        self._recent.clear()
        self._until_probe = max(self._every, int(took_s / (_PROBE_SHARE * self._usual_s)))
        affordable = int(exchange_s / (_EXCHANGE_SHARE * self._usual_s))
        self._until_exchange = self._between_exchanges = min(max(_EXCHANGE_EVERY, affordable), _EXCHANGE_RARELY)
        return replace(auto, link=link)

    def _trial_is_due(self, auto: Auto, cost: _StepCost, changed: bool) -> bool:
        """Tell whether the other way is due for a trial, and worth it: no step of it should take twice as long."""
        assert auto.link is not None  # joined
        there = replace(auto, way="sparse" if cost.dense(auto) else "dense")
        loss_s = cost.predicted_s(there) - cost.predicted_s(auto)
        self._until_trial -= 1
        due = (self._until_trial <= 0 or changed) and self._trials_cost_s <= _TRIAL_SHARE * self._elapsed_s
        if not due:  # whatever trials have cost: what was found out on another link says nothing
            due = changed and loss_s < 0 and not 1 / _CHANGED < auto.link.bytes_per_s / self._judged_bytes_s < _CHANGED
        if not due:
            return False
        self._between_trials *= 2
        self._until_trial = self._between_trials
        self._judged_bytes_s = auto.link.bytes_per_s
        return cost.dense(there) != cost.dense(auto) and loss_s < self._usual_s

    def _on_trial(self, auto: Auto) -> Auto:
        assert self._trial is not None
        return replace(auto, trial=self._trial.other if self._trial.trying else None)

    def _judge(self, trial: _Trial, auto: Auto, comm: Communicator, cost: _StepCost) -> Auto:
        """Take the way that is worth it on the slowest worker, once no block to come can change that."""
        medians = max_over_workers(comm, trial.medians())
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
        self._trials_cost_s += max(0.0, other_s - present_s) * trial.taken / 2
        self._usual_s, self._until_exchange = other_s if best == trial.other else present_s, self._between_exchanges
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
