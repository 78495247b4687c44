"""The operator benchmark: every operator on every vector, interleaved, with the speed of memory beside it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.ops import Taken
from gaussiank.sparse import MAX_NUMEL
from gaussiank_lab.bench.measure import Case, interleave, ratios, spread
from gaussiank_lab.bench.operators import LAWS, Operator, Switch, Vectors, operator_names, operators
from gaussiank_lab.bench.rows import Row
from gaussiank_lab.machine import origin

BYTES_AN_ENTRY = 12  # the least that adding a gradient to a residual moves: read both, write one
SMALL = 1_000_000
SMALL_REPEATS = 3  # short runs are repeated so many times more often
_PEAK_BYTES = 48  # five vectors here, and what the hungriest peer holds (argpartition: int64 indices and magnitudes)


@dataclass(frozen=True)
class OpsConfig:
    """What to measure.

    Args:
        sizes: entries of the vectors.
        densities: shares to send.
        laws: laws of the vectors.
        names: operators; empty for all.
        backends: backends that ours run on; empty for all that this machine has.
        repeats: rounds, at least 1; three times as many up to 1e6 entries.
        budget_s: an operator that needs longer than this for all its rounds is skipped.
        threads: torch's threads, or None to leave them.
        seed: of the vectors.

    Raises:
        ValueError: a value that cannot be measured.
    """

    sizes: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    densities: tuple[float, ...] = (0.001, 0.01)
    laws: tuple[str, ...] = tuple(LAWS)
    names: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    repeats: int = 9
    budget_s: float = 20.0
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for argument in ("sizes", "densities", "laws"):
            if not getattr(self, argument):
                raise ValueError(f"{argument} must name at least one, got none. Leave the option out for all.")
        for numel in self.sizes:
            if not 1000 <= numel <= MAX_NUMEL:
                raise ValueError(f"sizes must be in [1000, {MAX_NUMEL}], got {numel}. Give sizes such as 1e5,1e6,1e7.")
        for density in self.densities:
            if not 0 < density <= 1:
                raise ValueError(f"densities must be in (0, 1], got {density}. Give shares such as 0.001,0.01.")
        _require_known("laws", self.laws, tuple(LAWS))
        _require_known("operators", self.names, operator_names())
        _require_known("backends", self.backends, ops.backends().available)
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}. A median wants 7 or more.")
        if self.budget_s <= 0:
            raise ValueError(f"budget must be above 0 s, got {self.budget_s}. Leave it out for 20 s.")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}. Leave it out to keep torch's number.")

    @property
    def settings(self) -> int:
        """How many (size, law, density) there are."""
        return len(self.sizes) * len(self.laws) * len(self.densities)

    def rounds(self, numel: int) -> int:
        """Return the measurements of each operator at a size."""
        return self.repeats * (SMALL_REPEATS if numel <= SMALL else 1)


def _require_known(argument: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{argument} must be among {', '.join(known)}, got {name!r}. Correct it.")


def require_memory(config: OpsConfig) -> None:
    """Raise unless the largest vectors fit the machine's free memory.

    Raises:
        ValueError: they do not.
    """
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    largest = max(config.sizes)
    if _PEAK_BYTES * largest > free:
        raise ValueError(
            f"sizes must fit into {free / 1e9:.1f} GB of free memory at {_PEAK_BYTES} bytes an entry, "
            f"got {largest:.3g}. Leave out the largest."
        )


class OpsSetting(NamedTuple):
    """One of the combinations that are measured together."""

    numel: int
    law: str
    density: float

    def __str__(self) -> str:
        return f"{self.numel:.0e} {self.law} {self.density:g}".replace("e+0", "e")


@dataclass(eq=False)
class OpsBench:
    """Measures all settings of a configuration.

    Args:
        config: what to measure.
        on_round: called with the setting after each round, to show progress.
    """

    config: OpsConfig
    on_round: Callable[[OpsSetting], None] = lambda _: None
    _speed: dict[tuple[str, str, str], float] = field(default_factory=dict)  # seconds an entry, from a smaller size

    def run(self) -> Iterator[list[Row]]:
        """Yield the rows of each setting as soon as it is done: sizes ascending, then laws, then densities.

        While this runs, torch has the configuration's threads; both threads and backend are put back at the end.
        """
        config, threads = self.config, torch.get_num_threads()
        if config.threads:
            torch.set_num_threads(config.threads)
        try:
            with Switch() as switch:
                for numel, law in itertools.product(sorted(config.sizes), config.laws):
                    vectors = Vectors.draw(law, numel, config.seed)
                    for density in config.densities:
                        yield self._measure(vectors, OpsSetting(numel, law, density), switch)
        finally:
            torch.set_num_threads(threads)

    def _measure(self, vectors: Vectors, setting: OpsSetting, switch: Switch) -> list[Row]:
        k = max(1, round(setting.density * setting.numel))
        rounds = self.config.rounds(setting.numel)
        made = operators(self.config.names or operator_names(), self.config.backends or ops.backends().available)
        sums = [vectors.accumulated(side) for side in (0, 1)]
        runs = [OperatorRun(operator, vectors, k, switch) for operator in made]
        for run in runs:
            switch.to(run.operator.backend)
            run.operator.settle(sums[1], setting.density)
            self._predict(run, setting.numel, rounds)
        add, copy = ceilings(vectors)
        cases = [add, copy, *(run.case for run in runs)]
        interleave(cases, rounds, budget_s=self.config.budget_s, tick=lambda: self.on_round(setting))
        exact = [ops.select_topk(vector, k).long() for vector in sums]
        about = {**origin(), "numel": setting.numel, "law": setting.law, "density": setting.density, "k": k}
        about |= {"dtype": "float32", "threads": torch.get_num_threads(), "repeats": rounds}
        rows: list[Row] = []
        for case in (add, copy):
            rows.append({"kind": "ceiling", "operator": case.name, "family": "ceiling", "backend": "torch", **about})
            rows[-1] |= timing(case, add, 8 if case is copy else BYTES_AN_ENTRY, setting.numel)
        for run in runs:
            rows.append({**run.row(rounds, sums, exact, add), **about})
            if run.case.times:
                self._speed[run.key] = spread(run.case.times).median / setting.numel
        return rows

    def _predict(self, run: OperatorRun, numel: int, rounds: int) -> None:
        """Skip without a run what a smaller size has shown to take too long."""
        needed_s = self._speed.get(run.key, 0.0) * numel * rounds
        if needed_s > self.config.budget_s:
            run.case.skipped = f"{rounds} runs would need about {needed_s:.0f} s"


class OperatorRun:
    """One operator on one pair of vectors, as a case for the stop-watch.

    Args:
        operator: what to run.
        vectors: what to run it on.
        k: entries asked for.
        switch: brings the operator's backend.
    """

    def __init__(self, operator: Operator, vectors: Vectors, k: int, switch: Switch) -> None:
        self.operator = operator
        self.case = Case(operator.label, self._run, self._prepare)
        self._vectors = vectors
        self._k = k
        self._switch = switch
        self._taken = Taken(torch.empty(0, dtype=torch.int32), torch.empty(0))

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells the operator from others."""
        return self.operator.name, self.operator.backend, self.operator.state

    def _prepare(self, turn: int) -> None:
        self._switch.to(self.operator.backend)
        self._vectors.reset(turn % 2)

    def _run(self, turn: int) -> None:
        self._taken = self.operator.take(self._vectors.grads[turn % 2], self._vectors.residual, self._k)

    def row(self, rounds: int, sums: list[Tensor], exact: list[Tensor], add: Case) -> Row:
        """Return what was found; the counts are those of the last round."""
        name, backend, state = self.key
        row: Row = {"kind": "operator", "operator": name, "family": self.operator.family}
        row |= {"backend": backend, "state": state}
        if self.case.skipped:
            return {**row, "kind": "skipped", "reason": self.case.skipped}
        indices, side = self._taken.indices.long(), rounds % 2
        if not torch.equal(self._taken.values, sums[side][indices]):
            raise RuntimeError(f"{name} on {backend} must send what it chose, got other values. Report this as a bug.")
        kept = indices.numel()
        hit = int(torch.isin(exact[side], indices).sum())
        row |= {"kept": kept, "kept_over_k": kept / self._k, "recall": hit / self._k}
        return row | timing(self.case, add, BYTES_AN_ENTRY, self._vectors.numel)


def ceilings(vectors: Vectors) -> tuple[Case, Case]:
    """Return the cases of the memory itself: the in-place add, which no operator can do without, and a copy."""

    def add(turn: int) -> None:
        vectors.residual.add_(vectors.grads[turn % 2])

    def copy(turn: int) -> None:
        vectors.residual.copy_(vectors.grads[turn % 2])

    def prepare(turn: int) -> None:
        vectors.reset(turn % 2)

    return Case("add in place", add, prepare, always=True), Case("copy", copy, prepare, always=True)


def timing(case: Case, add: Case, bytes_an_entry: int, numel: int) -> dict[str, Any]:
    """Return the time of a case, its share of the add's speed round by round, and the gigabytes a second it needs."""
    seconds, share = spread(case.times), ratios(add.times, case.times)
    return {
        "seconds": seconds.median,
        "seconds_low": seconds.low,
        "seconds_high": seconds.high,
        "of_ceiling": share.median,
        "gb_per_s": bytes_an_entry * numel / seconds.median / 1e9,
    }
