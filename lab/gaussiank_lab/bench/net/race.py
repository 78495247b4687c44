"""Seconds to a loss over slow links: loss against steps from real training, times the mean seconds of a step there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gaussiank_lab.bench.net.run import NetBench, NetConfig
from gaussiank_lab.bench.rows import Row
from gaussiank_lab.machine import origin
from gaussiank_lab.report.records import number
from gaussiank_lab.reproduce.job import Job
from gaussiank_lab.train.config import TrainConfig, resolve

MODEL, WORKERS, STEPS, EVERY = "transformer", 4, 600, 20
SHARE = 0.8
"""Of dense training's steps: the loss that it has then is the goal."""
RATES = ("20mbit", "100mbit")


@dataclass(frozen=True)
class Entrant:
    """A method, as it is timed and as it is trained.

    Args:
        name: for ``bench net``.
        method: for ``train``, where it has another name.
        settings: of its training, at the best learning rate that was tried.
        family: whom it stands for in the targets.
    """

    name: str
    method: str
    family: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def job(self, seed: int) -> Job:
        """Return its training."""
        given = {"model": MODEL, "methods": (self.method,), "workers": WORKERS, "steps": STEPS, "eval_steps": EVERY}
        fields = {**given, "timeout_s": 600.0, "seed": seed, **self.settings}
        return Job(TrainConfig(**resolve(None, None, fields)))


def _local(name: str, family: str, lr: float, steps: int) -> Entrant:
    return Entrant(name, name, family, {"lr": lr, "steps": steps})


_ROWS = {"lr": 0.003, "wire": "rice+2bit"}
ENTRANTS = (
    Entrant("ddp", "dense", "ddp", {"lr": 0.002}),
    Entrant("powersgd:rank=1", "powersgd", "powersgd", {"lr": 0.002}),
    Entrant("powersgd:rank=4", "powersgd:rank=4", "powersgd", {"lr": 0.003}),
    Entrant("adamrows", "topk", "adamrows", _ROWS),
    Entrant("adamrows:density=0.0045", "topk", "adamrows", {**_ROWS, "density": 0.0045}),
    _local("local:density=0.0625:sync_every=10:decay=1.0", "local", 0.006, 900),
    _local("local:density=0.25:sync_every=5:decay=1.0", "local", 0.006, 900),
    _local("local:density=0.25:sync_every=5:decay=1.0:sync_delay=2", "local", 0.006, 800),
    _local("diloco:sync_every=10", "diloco", 0.003, 900),
    _local("diloco:values=8bit:sync_every=10", "diloco8", 0.003, 900),
)
"""Who takes part. ``adamrows`` has density 1/64; learning rates tried stand in results/network.md."""


def curve_of(job: Job, curves: Path) -> list[tuple[int, float]]:
    """Return step and loss on the test set, as they were evaluated."""
    return [(int(one["step"]), number(one, "loss")) for one in job.records(curves).evals]


def steps_to(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """Return the step at which a loss falls to a target, in a line between evaluations; None where it never does.

    Example:
        >>> steps_to([(10, 3.0), (20, 2.0), (30, 1.0)], 1.5), steps_to([(10, 3.0)], 1.5)
        (25.0, None)
    """
    if curve and curve[0][1] <= target:
        return float(curve[0][0])
    for (before, high), (step, low) in itertools.pairwise(curve):
        if low <= target < high:
            return before + (high - target) / (high - low) * (step - before)
    return None


@dataclass(frozen=True)
class Race:
    """Train what is not trained yet, time the steps of each method on each link, and put both together.

    Args:
        curves: folder of the trainings; one that is there is not taken again.
        entrants: who takes part; the first is what the others are compared with, and sets the goal.
        rates: of the links.
        rounds: in which every method is timed once on each.
        budget_s: seconds for a method's steps in one of them.
        seed: of weights, data and vectors.
        on_note: called with a few words on what comes next.
    """

    curves: Path
    entrants: Sequence[Entrant] = ENTRANTS
    rates: Sequence[str] = RATES
    rounds: int = 2
    budget_s: float = 12.0
    seed: int = 0
    on_note: Callable[[str], None] = lambda _: None

    def train(self) -> None:
        """Train whatever has no curve yet."""
        for entrant in self.entrants:
            job = entrant.job(self.seed)
            if not job.done(self.curves):
                self.on_note(f"training {entrant.name}")
                job.where(self.curves).parent.mkdir(parents=True, exist_ok=True)
                job.do(self.curves)

    def run(self) -> Iterator[list[Row]]:
        """Yield the timings of each link, and after them its rows of seconds to the loss."""
        self.train()
        names = tuple(entrant.name for entrant in self.entrants)
        config = NetConfig(
            (MODEL,), tuple(self.rates), names, (WORKERS,), batch_size=4, rounds=self.rounds, steps=20,
            budget_s=self.budget_s, seed=self.seed,
        )  # fmt: skip
        for timed in NetBench(config, self.on_note).run():
            yield timed
            yield self.placed({row["method"]: row for row in timed})

    def placed(self, timed: Mapping[str, Row]) -> list[Row]:
        """Return seconds to the loss of each entrant on one link.

        Args:
            timed: method -> its row of ``bench net``.
        """
        jobs = [entrant.job(self.seed) for entrant in self.entrants]
        dense = curve_of(jobs[0], self.curves)
        goal = dense[-1][0] * SHARE
        target = next(loss for step, loss in dense if step >= goal)
        rows = []
        for entrant, job in zip(self.entrants, jobs, strict=True):
            curve, row = curve_of(job, self.curves), timed[entrant.name]
            steps = steps_to(curve, target)
            rows.append(
                {
                    "kind": "seconds to loss",
                    "method": entrant.name,
                    "family": entrant.family,
                    **{key: row[key] for key in ("model", "workers", "rate", "rate_mbit", "step_s", "load_before")},
                    "target_loss": target,
                    "steps": steps,
                    "trained_steps": curve[-1][0],
                    "last_loss": curve[-1][1],
                    "lr": job.config.lr,
                    "seconds": None if steps is None else steps * row["step_s"],
                    "at_least_s": (curve[-1][0] if steps is None else steps) * row["step_s"],
                    "accounted_bytes": row["accounted_bytes"],
                    **origin(),
                }
            )
        for row in rows:
            row["times_faster"] = row["seconds"] and rows[0]["at_least_s"] / row["seconds"]
        return rows


OVERLAPPED = "local:density=0.0625:sync_every=10:decay=1.0:sync_delay=5"
"""What should cost nearly nothing on a link of 20 Mbit/s: a round's exchange beside five steps."""
OVERLAP = NetConfig(
    (MODEL,), ("20mbit",), (OVERLAPPED,), (WORKERS,), batch_size=4, rounds=12, steps=10, budget_s=3, together=True
)


def lead(rows: Sequence[Row], rate: str, ours: str, others: str) -> float:
    """Return how many times faster the best of our family is than the best of another on a link; 0 if it never ends.

    Where no other reaches the loss, the seconds that they have trained stand for theirs: it is at least so much.
    """
    here = [row for row in rows if row["kind"] == "seconds to loss" and row["rate"] == rate]
    own = [row["seconds"] for row in here if row["family"] == ours and row["seconds"] is not None]
    theirs = [row for row in here if row["family"] == others]
    ended = [row["seconds"] for row in theirs if row["seconds"] is not None]
    if not own:
        return 0.0
    return float((min(ended) if ended else max(row["at_least_s"] for row in theirs)) / min(own))
