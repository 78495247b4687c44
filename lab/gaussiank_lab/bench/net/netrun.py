"""The network benchmark: every method on every link, in turn on the same ranks, round after round."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from gaussiank_lab.bench.measure import spread
from gaussiank_lab.bench.rows import Row
from gaussiank_lab.machine import origin

from .methods import ALONE, DDP, NetMethod, parse_method
from .ranks import Ranks
from .rates import LOOPBACK, UNSHAPED, Rate, parse_rate
from .trainer import Trainer, Window
from .wires import missing
from .workloads import Workload, parse_workload

MOST_RANKS = 64
_SETTLING, _SETTLING_S = 60, 15.0  # steps and seconds in which `auto` may try dense against sparse, not counted
_READERS: dict[str, Callable[[str], object]] = {
    "models": parse_workload, "rates": parse_rate, "methods": parse_method,
}  # fmt: skip


@dataclass(frozen=True)
class NetConfig:
    """What to measure.

    Args:
        models: models of the lab, ``alexnet-small``, or ``vector:N``.
        rates: of the links.
        methods: ways to exchange.
        workers: numbers of ranks.
        density: share of entries to send.
        batch_size: examples a rank and step.
        rounds: times that all methods are measured, one after the other.
        steps: measured in each round, at most.
        warm: steps before them, at full speed.
        budget_s: seconds for the measured steps of a method and round; at least one step is taken.
        together: set each method up once and take turns between all of them, so that what is compared lies a second or
            two apart; for ratios near 1.
        until_loss: train each method once until its loss falls below this, at most ``steps`` steps, and note the time.
        seed: of weights, data and vectors.

    Raises:
        ValueError: a value that cannot be measured.
    """

    models: tuple[str, ...] = ("lenet5",)
    rates: tuple[str, ...] = ("100mbit", LOOPBACK)
    methods: tuple[str, ...] = (DDP, "ddp-bf16", "topk")
    workers: tuple[int, ...] = (4,)
    density: float = 0.001
    batch_size: int = 8
    rounds: int = 3
    steps: int = 10
    warm: int = 4
    budget_s: float = 5.0
    together: bool = False
    until_loss: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for argument, read in _READERS.items():
            names: tuple[str, ...] = getattr(self, argument)
            if not names:
                raise ValueError(f"{argument} must name at least one, got none. Leave the option out.")
            for name in names:
                read(name)
        if not self.workers:
            raise ValueError("workers must be at least one number, got none. Leave the option out.")
        if any(parse_workload(name).numel for name in self.models):
            self._require_vector_methods()
        self._require_numbers()

    def _require_vector_methods(self) -> None:
        for name in self.methods:
            if name.strip() in (ALONE, "ddp-powersgd"):
                raise ValueError(f"methods of a vector must exchange a vector, got {name}. Leave it out.")
        if self.until_loss is not None:
            raise ValueError(f"until_loss must be left out for a vector, got {self.until_loss}. A vector has no loss.")

    def _require_numbers(self) -> None:
        for number in self.workers:
            if not 1 <= number <= MOST_RANKS:
                raise ValueError(f"workers must be in [1, {MOST_RANKS}], got {number}. Correct it.")
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}. Give a share such as 0.001.")
        for argument in ("batch_size", "rounds", "steps"):
            if getattr(self, argument) < 1:
                raise ValueError(f"{argument} must be at least 1, got {getattr(self, argument)}. Raise it.")
        if self.warm < 3 and self.until_loss is None:
            raise ValueError(f"warm must be at least 3, got {self.warm}. DDP orders its buckets anew after a step.")
        if not self.budget_s > 0:
            raise ValueError(f"budget_s must be above 0, got {self.budget_s}. Leave it out for 5 s.")


class Setting(NamedTuple):
    """What is measured together: all methods of one model on one link."""

    workload: Workload
    world_size: int
    rate: Rate

    def __str__(self) -> str:
        return f"{self.workload.name}, {self.world_size} workers, {self.rate.name}"


def possible(rates: Sequence[Rate]) -> tuple[list[Rate], str | None]:
    """Return the rates that this machine can have, and one sentence about those that it cannot."""
    reason = missing()
    refused = [rate.name for rate in rates if rate.isolated]
    if reason is None or not refused:
        return list(rates), None
    kept = [rate for rate in rates if not rate.isolated] or [parse_rate(LOOPBACK)]
    return kept, f"Not measured at {', '.join(refused)}, only on loopback: {reason}."


@dataclass(eq=False)
class NetBench:
    """Measure all settings of a configuration.

    Args:
        config: what to measure.
        on_note: called with a few words on what comes next.
    """

    config: NetConfig
    on_note: Callable[[str], None] = lambda _: None
    _load_before: float = field(default=0.0, init=False)

    def run(self) -> Iterator[list[Row]]:
        """Yield the rows of each setting as soon as it is done, and what there is of one that is interrupted.

        Raises:
            RuntimeError: a rank has failed or ended; nothing is left behind.
        """
        rates, _ = possible([parse_rate(name) for name in self.config.rates])
        for world_size, isolated in itertools.product(self.config.workers, (True, False)):
            chosen = [rate for rate in rates if rate.isolated == isolated]
            if not chosen:
                continue
            self.on_note(f"starting {world_size} workers")
            with Ranks(world_size, isolated, Trainer) as ranks:
                for name, rate in itertools.product(self.config.models, chosen):
                    setting = Setting(parse_workload(name), world_size, rate)
                    rounds: dict[NetMethod, list[list[Window]]] = {}
                    try:
                        self._measure(ranks, setting, rounds)
                    except (KeyboardInterrupt, SystemExit):
                        if rows := self._rows(setting, rounds):
                            yield rows
                        raise
                    yield self._rows(setting, rounds)

    def _measure(self, ranks: Ranks, setting: Setting, rounds: dict[NetMethod, list[list[Window]]]) -> None:
        """Fill ``rounds``; what is in there when the user interrupts is kept."""
        methods = [parse_method(name) for name in self.config.methods]
        if not setting.workload.numel and self.config.until_loss is None:
            methods = [parse_method(ALONE), *(method for method in methods if method.name != ALONE)]
        self._load_before = os.getloadavg()[0]
        for turn in range(self.config.rounds if self.config.until_loss is None else 1):
            for method in methods:
                self.on_note(f"{setting}: {method.name}, round {turn + 1}")
                window = self._window(ranks, setting, method, again=self.config.together and turn > 0)
                rounds.setdefault(method, []).append(window)
        if self.config.together:
            ranks.call("drop")

    def _rows(self, setting: Setting, rounds: dict[NetMethod, list[list[Window]]]) -> list[Row]:
        shared = {**_about(setting, self.config), "load_before": round(self._load_before, 2), **origin()}
        rows = [_row(method, windows) for method, windows in rounds.items()]
        _compare(rows)
        return [{**row, **shared} for row in rows]

    def _window(self, ranks: Ranks, setting: Setting, method: NetMethod, again: bool) -> list[Window]:
        config = self.config
        if again:
            ranks.call("recall", method.name)
        else:
            self._set_up(ranks, setting, method)
        windows: list[Window] = ranks.call("measure", config.steps, config.budget_s, config.until_loss)
        ranks.call(*(("keep", method.name) if config.together else ("drop",)))
        return windows

    def _set_up(self, ranks: Ranks, setting: Setting, method: NetMethod) -> None:
        """Set a method up at full speed, and the link to its rate."""
        config, full = self.config, parse_rate(UNSHAPED)
        if setting.rate.isolated:
            ranks.shape(full)
        ranks.call("prepare", setting.workload, method, config.density, config.batch_size, config.seed)
        if method.measures_link and setting.rate.isolated:
            ranks.shape(setting.rate)
        ranks.call("attach")
        if method.measures_link:
            ranks.call("measure", _SETTLING, _SETTLING_S, None)
        if setting.rate.isolated:
            ranks.shape(full)
        ranks.call("warm", config.warm if config.until_loss is None else 0)
        if setting.rate.isolated:
            ranks.shape(setting.rate)


def _about(setting: Setting, config: NetConfig) -> Row:
    return {
        "kind": "net",
        "model": setting.workload.name,
        "workers": setting.world_size,
        "rate": setting.rate.name,
        "rate_mbit": None if setting.rate.bits_s is None else setting.rate.bits_s / 1e6,
        "density": config.density,
        "batch_size": config.batch_size,
        "threads": max(1, (os.cpu_count() or 1) // setting.world_size),
        "until_loss": config.until_loss,
    }


def _row(method: NetMethod, rounds: Sequence[Sequence[Window]]) -> Row:
    """Sum up the rounds of one method: medians over steps of means over workers."""
    steps = [step for windows in rounds for step in zip(*(window.steps for window in windows), strict=True)]

    def median(read: Callable[[Any], float | None]) -> float | None:
        values = [[read(row) for row in step] for step in steps]
        if any(value is None for row in values for value in row):
            return None
        return statistics.median(statistics.fmean(value for value in row if value is not None) for row in values)

    step_s = spread([statistics.fmean(row.step_s for row in step) for step in steps])
    counted = [_counted(windows) for windows in rounds]
    return {
        "method": method.name,
        "family": method.family,
        "numel": rounds[0][0].numel,
        "rounds": len(rounds),
        "steps": len(steps),
        "step_s": step_s.median,
        "step_low_s": step_s.low,
        "step_high_s": step_s.high,
        "round_step_s": [
            statistics.median(statistics.fmean(row.step_s for row in step) for step in zip(*parts, strict=True))
            for parts in ([window.steps for window in windows] for windows in rounds)
        ],
        **{f"{name}_s": median(attrgetter(f"{name}_s")) for name in _OUTER},
        **{f"{name}_s": median(attrgetter(f"spent.{name}_s")) for name in _INNER},
        "kept": median(lambda row: row.spent.kept),
        "sent_dense": any(row.spent.dense for step in steps for row in step),
        "loss": statistics.fmean(row.loss for row in steps[-1]),
        **{
            name: None if counted[0] is None else statistics.fmean(one[name] for one in counted if one is not None)
            for name in _COUNTED
        },
        "accounted_bytes": statistics.fmean(row.spent.sent_bytes for step in steps for row in step),
        "loss_s": _seconds_to_loss(rounds[0]),
    }


_OUTER = ("forward", "backward", "optimizer")
_INNER = ("select", "exchange", "finish")
_COUNTED = ("kernel_sent_bytes", "kernel_sent_content_bytes", "kernel_received_content_bytes", "kernel_most_bytes")


def _counted(windows: Sequence[Window]) -> dict[str, float] | None:
    """Return what the kernel counted for a worker and step; ``most`` is what the busiest sent and received."""
    counters = [window.counters for window in windows if window.counters is not None]
    if not counters:
        return None
    steps = len(windows[0].steps)
    both = [one.sent_content_bytes + one.received_content_bytes for one in counters]
    values = (
        statistics.fmean(one.sent_bytes for one in counters),
        statistics.fmean(one.sent_content_bytes for one in counters),
        statistics.fmean(one.received_content_bytes for one in counters),
        max(both),
    )
    return {name: value / steps for name, value in zip(_COUNTED, values, strict=True)}


def _seconds_to_loss(windows: Sequence[Window]) -> float | None:
    """Return the seconds of all steps, when the last one reached the loss that was wanted."""
    if not windows[0].reached:
        return None
    return sum(statistics.fmean(row.step_s for row in step) for step in zip(*(w.steps for w in windows), strict=True))


def _compare(rows: list[Row]) -> None:
    """Add what needs two rows: the wait, the efficiency, and how much faster than plain DDP, round by round."""
    found = {row["method"]: row for row in rows}
    alone, dense = found.get(ALONE), found.get(DDP)
    for row in rows:
        row["compute_s"] = alone and alone["step_s"]
        row["wait_s"] = alone and row["step_s"] - alone["step_s"]
        row["efficiency"] = alone and alone["step_s"] / row["step_s"]
        row["speedup"] = row["speedup_low"] = row["speedup_high"] = None
        if dense and row is not alone:
            ratios = [a / b for a, b in zip(dense["round_step_s"], row["round_step_s"], strict=False)]
            row["speedup"], row["speedup_low"], row["speedup_high"] = spread(ratios)
