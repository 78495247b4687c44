"""The network benchmark: every method on every link, in turn on the same ranks, round after round."""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from operator import attrgetter
from types import TracebackType
from typing import Any, NamedTuple

from gaussiank_lab.bench.measure import spread
from gaussiank_lab.bench.net.links import (
    DEVICE,
    LOOPBACK,
    UNSHAPED,
    LinkRate,
    address,
    connect,
    leave_network,
    missing,
    obey,
    parse_rate,
    serve_hub,
    shape,
)
from gaussiank_lab.bench.net.methods import ALONE, DDP, NetMethod, Rows, parse_method
from gaussiank_lab.bench.net.training import StepRow, Trainer, TrainingWorkload, Window, parse_workload
from gaussiank_lab.bench.rows import Row
from gaussiank_lab.launch import processes
from gaussiank_lab.machine import origin
from gaussiank_lab.train.local import Local

_END_TIMEOUT_S = 5.0
_OWN_PORT = 29_400  # free in a network that nobody else is in
_LOCALHOST = "127.0.0.1"


class Ranks:
    """Real processes, each with an object that takes orders; the group is connected when the context is entered.

    Args:
        world_size: how many.
        isolated: give each a network of its own, joined by a bridge; else they share this machine's loopback.
        make: a module's own function; called in each process with rank, world size, and a URL at which torch's workers
            meet; makes the object.

    Raises:
        RuntimeError: a rank has failed or ended; names it. The others are ended too.
    """

    def __init__(self, world_size: int, isolated: bool, make: Callable[[int, int, str], Any]) -> None:
        self.world_size, self.isolated = world_size, isolated
        self._make = make
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._hub: Connection | None = None
        self._rate: LinkRate | None = None

    def __enter__(self) -> Ranks:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks, then of the hub if there is one."""
        return [process.pid or 0 for process in self._processes]

    def shape(self, rate: LinkRate) -> None:
        """Give every link a rate, on both ends; on loopback nothing changes."""
        if self._hub is None or rate == self._rate:
            return
        self._hub.send(rate)
        self._answered(self._hub)
        self.call("shape", rate)
        self._rate = rate

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of the object of every rank at once; return what each gave, in rank order."""
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send((method, arguments))
            except (BrokenPipeError, ConnectionResetError):
                raise self._ended(rank) from None
        return self._answers()

    # ------------------------------------------------------------------ start and end

    def _start(self) -> None:
        with _quiet_torch():
            self._start_processes()
        if self._hub is not None:
            self._answered(self._hub)
        pids = self._answers()
        if self._hub is not None:
            self._hub.send(pids)
            self._answered(self._hub)
        self.call("connect")
        host, port = (address(0), _OWN_PORT) if self.isolated else (_LOCALHOST, _free_port())
        self.call("make", f"tcp://{host}:{port}")

    def _start_processes(self) -> None:
        context = processes()
        parent = os.getpid()
        self._pipes = [
            self._spawn(context, _serve_rank, rank, self.world_size, self.isolated, self._make, parent)
            for rank in range(self.world_size)
        ]
        if self.isolated:
            self._hub = self._spawn(context, serve_hub, parent)

    def _spawn(self, context: Any, serve: Callable[..., None], *arguments: Any) -> Connection:
        ours: Connection
        ours, theirs = context.Pipe()
        *before, parent = arguments
        process = context.Process(target=serve, args=(*before, theirs, parent), daemon=True)
        process.start()
        theirs.close()  # so that its end is seen here when the process ends
        self._processes.append(process)
        return ours

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_END_TIMEOUT_S)
        for pipe in [*self._pipes, *([self._hub] if self._hub else [])]:
            pipe.close()
        self._processes, self._pipes, self._hub, self._rate = [], [], None, None

    # ------------------------------------------------------------------ answers

    def _answers(self) -> list[Any]:
        """Collect an answer of each; the first that fails or ends speaks for all."""
        answers: dict[int, Any] = {}
        places = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        while len(answers) < self.world_size:
            ready = wait([pipe for pipe, rank in places.items() if rank not in answers])
            for rank in [rank for pipe, rank in places.items() if pipe in ready]:
                try:
                    passed, answer = self._pipes[rank].recv()
                except (EOFError, ConnectionResetError):
                    raise self._ended(rank) from None
                if not passed:
                    last_line = answer.strip().splitlines()[-1]
                    raise RuntimeError(f"rank {rank} failed and the others were ended: {last_line}")
                answers[rank] = answer
        return [answers[rank] for rank in range(self.world_size)]

    def _answered(self, hub: Connection) -> None:
        try:
            answer = hub.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError("the hub of the network has ended, and the ranks were ended with it.") from None
        if isinstance(answer, str):
            raise RuntimeError(f"the network must be possible here, got: {answer}. Run with --rates {LOOPBACK}.")

    def _ended(self, rank: int) -> RuntimeError:
        self._processes[rank].join(_END_TIMEOUT_S)
        code = self._processes[rank].exitcode
        return RuntimeError(f"rank {rank} has ended with status {code}, and the others were ended.")


def _serve_rank(
    rank: int, world_size: int, isolated: bool, make: Callable[[int, int, str], Any], orders: Connection, parent: int
) -> None:
    """Take orders: what the process of a rank runs."""
    obey(parent)
    made: Any = None
    try:
        if isolated:
            leave_network()
        orders.send((True, os.getpid()))
        while True:
            method, arguments = orders.recv()
            if method == "connect":
                if isolated:
                    connect(rank)
                answer = None
            elif method == "make":
                os.environ["GLOO_SOCKET_IFNAME"] = DEVICE if isolated else "lo"
                made = make(rank, world_size, *arguments)
                answer = None
            elif method == "shape":
                shape(DEVICE, *arguments)
                answer = None
            else:
                answer = getattr(made, method)(*arguments)
            orders.send((True, answer))
    except EOFError:
        return
    except BaseException as error:
        orders.send((False, traceback.format_exc()))  # the parent says it, so this process need not print it as well
        raise SystemExit(1) from error


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Keep torch in the processes that start now from warning that nobody there knows the names of addresses."""
    name = "TORCH_CPP_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = before or "ERROR"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind((_LOCALHOST, 0))
        port: int = taken.getsockname()[1]
    return port


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
            if name.strip() == ALONE or parse_method(name).special is not None:
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


class NetSetting(NamedTuple):
    """What is measured together: all methods of one model on one link."""

    workload: TrainingWorkload
    world_size: int
    rate: LinkRate

    def __str__(self) -> str:
        return f"{self.workload.name}, {self.world_size} workers, {self.rate.name}"


def possible(rates: Sequence[LinkRate]) -> tuple[list[LinkRate], str | None]:
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
                    setting = NetSetting(parse_workload(name), world_size, rate)
                    rounds: dict[NetMethod, list[list[Window]]] = {}
                    try:
                        self._measure(ranks, setting, rounds)
                    except (KeyboardInterrupt, SystemExit):
                        if rows := self._rows(setting, rounds):
                            yield rows
                        raise
                    yield self._rows(setting, rounds)

    def _measure(self, ranks: Ranks, setting: NetSetting, rounds: dict[NetMethod, list[list[Window]]]) -> None:
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

    def _rows(self, setting: NetSetting, rounds: dict[NetMethod, list[list[Window]]]) -> list[Row]:
        shared = {**_about(setting, self.config), "load_before": round(self._load_before, 2), **origin()}
        rows = [_row(method, windows) for method, windows in rounds.items()]
        _compare(rows)
        return [{**shared, **row} for row in rows]

    def _window(self, ranks: Ranks, setting: NetSetting, method: NetMethod, again: bool) -> list[Window]:
        config = self.config
        if again:
            ranks.call("recall", method.name)
        else:
            self._set_up(ranks, setting, method)
        windows: list[Window] = ranks.call("measure", config.steps, config.budget_s, config.until_loss)
        ranks.call(*(("keep", method.name) if config.together else ("drop",)))
        return windows

    def _set_up(self, ranks: Ranks, setting: NetSetting, method: NetMethod) -> None:
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


def _about(setting: NetSetting, config: NetConfig) -> Row:
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
    """Sum up the rounds of one method: medians over steps of means over workers.

    Where steps differ because the method exchanges every so many, the median is over means of as many.
    """
    each = [list(zip(*(window.steps for window in windows), strict=True)) for windows in rounds]
    steps = [step for one in each for step in one]

    def median(read: Callable[[Any], float | None]) -> float | None:
        if any(read(row) is None for step in steps for row in step):
            return None
        return statistics.median(_spells(steps, method.period, read))

    spells = [_spells(one, method.period, attrgetter("step_s")) for one in each]
    step_s = spread([spell_s for one in spells for spell_s in one])
    counted = [_counted(windows) for windows in rounds]
    return {
        "method": method.name,
        "family": method.family,
        "numel": rounds[0][0].numel,
        "rounds": len(rounds),
        "steps": len(steps),
        "period": method.period,
        **({"density": method.special.density} if isinstance(method.special, Rows | Local) else {}),
        "step_s": step_s.median,
        "step_low_s": step_s.low,
        "step_high_s": step_s.high,
        "round_step_s": [statistics.median(one) for one in spells],
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


def _spells(steps: Sequence[Sequence[StepRow]], period: int, read: Callable[[Any], float | None]) -> list[float]:
    """Return means of what is read of steps, over workers and over ``period`` steps each."""
    means = [statistics.fmean(value for row in step if (value := read(row)) is not None) for step in steps]
    return [statistics.fmean(means[start : start + period]) for start in range(0, len(means), period)]


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
