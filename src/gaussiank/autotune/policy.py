"""Which collective each vector takes: a given one, or by ``auto`` the one that should take the least time, or dense."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, TypeAlias

import torch
import torch.distributed as dist

from gaussiank.codec import Wire
from gaussiank.collectives import (
    COLLECTIVES,
    EXACT,
    Collective,
    DenseAllReduce,
    named_here,
)
from gaussiank.comm import Executor

from .tuner import PROBE_BYTES, Link, Tuner, Way, measure


@dataclass(frozen=True)
class Auto:
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
        every: steps between two probes of the link while training, which take at most 0.3 % of the time; at once when
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

    sends_values_alone: ClassVar[bool] = False

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

    def require_one_group(self) -> None:
        """Refuse candidates with groups of their own where nothing orders those and the group of dense gradients.

        Raises:
            ValueError: so it is.
        """
        if "hierarchical" in self._names:
            raise ValueError(
                f"candidates must not have hierarchical on an accelerator, got {self.candidates}: messages over "
                "several groups at once may hang there. Leave it out, or take hierarchical alone."
            )

    def join(self, group: dist.ProcessGroup | None = None, timeout_s: float = 300.0) -> Auto:
        """Measure the link, unless it was given, and get the candidates ready."""
        choices = tuple(COLLECTIVES[name]().join(group, timeout_s) for name in self._names)
        if self.mbit:
            latency_s = self.latency_us * 1e-6
            link = Link(latency_s, self.mbit * 125e3, self.select_ns * 1e-9, latency_s)
        else:
            link = measure(group)
        return replace(self, choices=choices, link=link)

    @property
    def _names(self) -> list[str]:
        return [named_here(name) for name in self.candidates.split("+")]

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

    def message_bytes(self, k: int, numel: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
        """That of any candidate, and the longest one that measures the link."""
        most = max(COLLECTIVES[name]().message_bytes(k, numel, world_size, wire, dtype) for name in self._names)
        return most if self.mbit else max(most, PROBE_BYTES)


Policy: TypeAlias = Collective | Auto


class CollectivePlan:
    """Say which collective each vector of a model takes, the same on every worker.

    A given collective takes all of them. ``auto`` chooses by numel and k, and before each step its tuner may revise it;
    a step that only repeats the last one need not ask (``begin_repeated``).

    Args:
        policy: a collective, or ``auto``.
        executor: lets the tuner send and wait between two steps.
        group: process group, or None for the default one; all its workers must make a plan.
        timeout_s: seconds after which a message of a group that is made here fails.
        wire: how entries travel.

    Attributes:
        policy: as it is in the step under way.
        tuner: revises it, or None.
    """

    def __init__(
        self, policy: Policy, executor: Executor, group: dist.ProcessGroup | None, timeout_s: float, wire: Wire
    ) -> None:
        if isinstance(policy, Auto) and executor.in_callers_thread:
            policy.require_one_group()
        self.policy: Policy = policy.join(group, timeout_s)
        measures = isinstance(policy, Auto) and policy.every > 0 and not policy.mbit
        self.tuner = Tuner(policy.every) if isinstance(policy, Auto) and measures else None
        self._executor, self._wire = executor, wire
        self._world_size = dist.get_world_size(group)
        self._asked: list[tuple[int, int]] = []  # numel and k of what was sparse in this step, or could have been
        self._asked_before = self._asked  # in the last step that was no repetition

    def begin_repeated(self) -> bool:
        """Begin a step that goes as the last one, without ``revise``, if it may; returns whether it may."""
        self._asked = []
        return self.tuner is None or self.tuner.try_skip()

    def revise(self, step: int) -> bool:
        """Let the tuner change the policy before the step with a number; tells whether it did."""
        if self.tuner is None:
            return False
        before = self.policy
        assert isinstance(before, Auto)  # nothing else has a tuner
        self._asked = []
        revised = partial(self.tuner.update, before, buckets=self._asked_before, wire=self._wire)
        self.policy = self._executor.run_sync(revised, f"the start of step {step}")
        return self.policy is not before

    def seal(self) -> None:
        """End a step that was no repetition; only a tuner asks."""
        self._asked_before = self._asked

    def choose(self, numel: int, k: int) -> Collective | None:
        """Return how ``k`` entries of ``[numel]`` are sent; None where ``auto`` would rather send all of it."""
        if isinstance(self.policy, Collective):
            return self.policy
        self._asked.append((numel, k))
        choice = self.policy.choose(numel, k, self._world_size, self._wire)
        return None if isinstance(choice, DenseAllReduce) else choice
