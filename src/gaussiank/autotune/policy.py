"""Auto: for each bucket the collective that should take the least time on this link, dense included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.distributed as dist

from gaussiank.codec import Wire
from gaussiank.collectives import (
    COLLECTIVES,
    EXACT,
    Collective,
    DenseAllReduce,
    ExchangeContext,
    Traffic,
)
from gaussiank.collectives.base import Program
from gaussiank.collectives.packing import agree_on_capacity
from gaussiank.comm import Executor
from gaussiank.sparse import SparseGradient

from .link_probe import LOOK_BYTES, Link, measure
from .tuner import Pilot, Way


@dataclass(frozen=True)
class Auto(Collective):
    """Choose for each bucket by predicted time: ``messages * latency + bytes / bandwidth + work``.

    The prediction needs only lengths, counts and a link on which all workers have agreed, so all choose the same. Where
    dense wins, nothing is selected either, and the residual goes out with the gradient.

    Args:
        latency_us: microseconds that a short message takes between two workers, or from each to all others at once.
        mbit: megabits a second in one direction; 0 measures it, ``latency_us`` and ``select_ns`` when the model is
            wrapped, in well under a second on a fast link.
        select_ns: nanoseconds that accumulation and selection take for each entry of the gradient.
        touch_ns: nanoseconds for each sparse entry that is encoded, decoded or added up.
        message_us: microseconds of work for each phase of a sparse exchange, whatever its size. Larger ones of these
            three favour dense.
        candidates: names to choose among, joined by ``+``. The default has those that keep every worker's own choice:
            not ``leader``, which takes one worker's, nor ``tree``, which keeps k entries of all.
        every: steps between two looks at the link while training, which take at most 0.3 % of the time; at once when
            steps become longer, or sparse ones shorter. Now and then dense is tried against sparse, where it can be
            near, for 8 to 72 steps, and the faster stays. 0 keeps to the link of the start; so does a link that is
            given by ``mbit``, which makes the same choices in every run.
    """

    latency_us: float = 50.0
    mbit: float = 0.0
    select_ns: float = 2.0
    touch_ns: float = 20.0
    message_us: float = 300.0
    candidates: str = "dense+allgather+split"
    every: int = 100
    link: Link | None = field(default=None, repr=False)
    way: Way = field(default="predicted", repr=False)
    trial: Way | None = field(default=None, repr=False)
    choices: tuple[Collective, ...] = field(default=(), repr=False, compare=False)
    pilot: Pilot | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for argument in ("latency_us", "mbit", "select_ns", "touch_ns", "message_us", "every"):
            if not getattr(self, argument) >= 0:
                raise ValueError(f"{argument} must be at least 0, got {getattr(self, argument)}. Correct it.")
        for name in self._names:
            if name not in COLLECTIVES:
                raise ValueError(f"candidates must be among {', '.join(COLLECTIVES)}, got {name!r}. Join them by +.")

    def rejects(self, *, bounded: bool) -> bool:
        """Whatever its candidates do."""
        return any(COLLECTIVES[name]().rejects(bounded=bounded) for name in self._names)

    def join(self, group: dist.ProcessGroup | None = None, timeout_s: float = 300.0) -> Auto:
        """Measure the link, unless it was given, and get the candidates ready."""
        choices = tuple(COLLECTIVES[name]().join(group, timeout_s) for name in self._names)
        if self.mbit:
            latency_s = self.latency_us * 1e-6
            link = Link(latency_s, self.mbit * 125e3, self.select_ns * 1e-9, latency_s)
        else:
            link = measure(group)
        pilot = Pilot(self.every) if self.every and not self.mbit else None
        return replace(self, choices=choices, link=link, pilot=pilot)

    @property
    def _names(self) -> list[str]:
        return self.candidates.split("+")

    @property
    def finding(self) -> str:
        """What it knows of the link and what proved faster, in words; empty before it has joined.

        Example:
            >>> Auto(link=Link(5e-5, 12.5e6, 2e-9, 5e-5), way="sparse").finding
            '100 Mbit/s, 50 us a message; sparse proved faster than dense'
        """
        if self.link is None:
            return ""
        proved = {
            "predicted": "dense or sparse as predicted",
            "dense": "dense proved faster than sparse, or nearly so",
            "sparse": "sparse proved faster than dense",
        }
        mbit = self.link.bytes_per_s / 125e3
        return f"{mbit:,.0f} Mbit/s, {1e6 * self.link.latency_s:.0f} us a message; {proved[self.way]}"

    def at_step(self, group: dist.ProcessGroup, buckets: Sequence[tuple[int, int]], wire: Wire) -> Auto:
        """Follow the link, and what proves faster."""
        return self if self.pilot is None else self.pilot.steer(self, group, buckets, wire)

    def rests(self) -> bool:
        """Tell whether the pilot has nothing to send or to try in the step that begins."""
        return self.pilot is None or self.pilot.rests()

    def predicted_s(self, collective: Collective, numel: int, k: int, world_size: int, wire: Wire = EXACT) -> float:
        """Predict the seconds from gradient to mean with one of the candidates."""
        assert self.link is not None  # joined
        messages, sent_bytes, touched, straight = collective.traffic(numel, k, world_size, wire)
        waits_s = messages * self.link.latency_s + straight * self.link.straight_s
        wire_s = waits_s + sent_bytes / self.link.bytes_per_s
        if isinstance(collective, DenseAllReduce):
            return wire_s
        phases = 1 + 2 * collective.multi_phase
        return wire_s + numel * self.link.select_s + touched * self.touch_ns * 1e-9 + phases * self.message_us * 1e-6

    def choose(self, numel: int, k: int, world_size: int, wire: Wire = EXACT) -> Collective:
        """Return the candidate with the least predicted time; the first of equals.

        Raises:
            RuntimeError: it has not joined a group yet.
        """
        if self.link is None:
            raise RuntimeError("collective must join a group before it starts, got none. Call join(group) first.")
        way = self.trial or self.way
        choices = [
            one for one in self.choices if way == "predicted" or isinstance(one, DenseAllReduce) == (way == "dense")
        ]
        return min(choices or self.choices, key=lambda choice: self.predicted_s(choice, numel, k, world_size, wire))

    def chooses_dense(self, numel: int, k: int, world_size: int, wire: Wire = EXACT) -> bool:
        """Tell whether it sends everything."""
        return isinstance(self.choose(numel, k, world_size, wire), DenseAllReduce)

    def traffic(self, numel: int, k: int, world_size: int, wire: Wire = EXACT) -> Traffic:
        """That of its choice."""
        return self.choose(numel, k, world_size, wire).traffic(numel, k, world_size, wire)

    def message_bytes(self, k: int, numel: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
        """That of any candidate, and the longest one that measures the link."""
        most = max(COLLECTIVES[name]().message_bytes(k, numel, world_size, wire, dtype) for name in self._names)
        return most if self.mbit else max(most, LOOK_BYTES)

    def program(self, sparse: SparseGradient, context: ExchangeContext) -> Program:
        """Choose by the capacity, and exchange so."""
        capacity = context.capacity
        if capacity is None:
            capacity = yield from agree_on_capacity(context.comm, sparse)
        choice = self.choose(sparse.numel, max(1, capacity), context.comm.world_size, context.wire)
        yield from choice.program(sparse, replace(context, capacity=capacity))


class CollectivePlan:
    """Ask the collective, and remember what was exchanged.

    Args:
        collective: how workers agree, joined to their group.
        executor: lets it send and wait between two steps.
        wire: how entries travel.
        world_size: number of workers.

    Attributes:
        collective: as it is in the step under way.
    """

    def __init__(self, collective: Collective, executor: Executor, *, wire: Wire, world_size: int) -> None:
        self.collective = collective
        self._executor = executor
        self._wire, self._world_size = wire, world_size
        self._asked: list[tuple[int, int]] = []  # numel and k of what is or could be sparse
        self._asked_before = self._asked  # in the last step that was no repetition

    def begin(self) -> None:
        """Begin a step."""
        self._asked = []

    def seal(self) -> None:
        """End a step that was no repetition."""
        self._asked_before = self._asked

    def revise(self, step: int) -> bool:
        """Let the collective change its mind before the step with a number; tells whether it did."""
        before = self.collective
        revised = partial(before.at_step, buckets=self._asked_before, wire=self._wire)
        self.collective = self._executor.run_sync(revised, f"the start of step {step}")
        return self.collective is not before

    def choose(self, numel: int, k: int) -> Collective | None:
        """Return how ``k`` entries of ``[numel]`` are sent; None where ``auto`` would rather send all of it."""
        self._asked.append((numel, k))
        choice = self.collective.choose(numel, k, self._world_size, self._wire)
        return None if isinstance(choice, DenseAllReduce) and choice is not self.collective else choice
