"""The targets of the benchmarks, measured: each with its floor, and what this machine gives."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.ops import native
from gaussiank.ops.dispatch import kernels
from gaussiank.sparse import SparseGradient
from gaussiank_lab.bench.measure import Case, interleave, ratios
from gaussiank_lab.bench.net.race import OVERLAP, OVERLAPPED, Race, lead
from gaussiank_lab.bench.net.run import NetBench, NetConfig
from gaussiank_lab.bench.operators import Switch, Vectors, operators
from gaussiank_lab.bench.ops import SMALL_REPEATS, OperatorRun, ceilings
from gaussiank_lab.bench.rows import Row
from gaussiank_lab.bench.tables import off_percent
from gaussiank_lab.machine import origin

DENSITY = 0.001
WORKERS = 16
_PEERS = ("torch.topk", "published Gaussian_k", "published DGC", "published SIDCo-E", "published RedSync")


class Target(NamedTuple):
    """What a measure should reach, and must.

    Attributes:
        what: what is measured.
        target: what it should reach.
        floor: what it must reach.
        unit: ``%`` of the in-place add, ``x`` faster, or ``+%`` for a cost, of which less is better.
    """

    what: str
    target: float
    floor: float
    unit: str

    def verdict(self, measured: float) -> str:
        """Return ``target met``, ``above floor`` or ``BELOW FLOOR``.

        Example:
            >>> Target("copy", 97, 75, "%").verdict(80), Target("extra", 10, 40, "+%").verdict(50)
            ('above floor', 'BELOW FLOOR')
        """
        sign = -1 if self.unit == "+%" else 1
        if sign * measured >= sign * self.target:
            return "target met"
        return "above floor" if sign * measured >= sign * self.floor else "BELOW FLOOR"

    def row(self, key: str, measured: float) -> Row:
        """Return the row of a measurement: the target, what was measured, the verdict, machine, date and commit."""
        found = {"measured": measured, "verdict": self.verdict(measured)}
        return {"kind": "check", "key": key, **self._asdict(), **found, **origin()}


OPS_TARGETS = {
    "steady": Target("exact take, steady, large: of the in-place add", 97, 75, "%"),
    "cold": Target("exact take, cold, large: of the in-place add", 90, 65, "%"),
    "small steady": Target("exact take, steady, 1e6: of the in-place add", 92, 60, "%"),
    "small cold": Target("exact take, cold, 1e6: of the in-place add", 80, 45, "%"),
    "torch.topk": Target("against torch.topk", 35, 15, "x"),
    "published Gaussian_k": Target("against the published Gaussian_k loop", 18, 7, "x"),
    "published DGC": Target("against DGC with a random sample", 12, 4, "x"),
    "published SIDCo-E": Target("against SIDCo-E", 25, 25 / 3, "x"),
    "published RedSync": Target("against RedSync's trimming + top-k", 20, 20 / 3, "x"),
    "steady 0.01": Target("exact take, steady, large, density 0.01: of the in-place add", 97, 75, "%"),
    "cold 0.01": Target("exact take, cold, large, density 0.01: of the in-place add", 90, 65, "%"),
    "exactness": Target("exactness: over a fixed known threshold", 10, 40, "+%"),
    "decode 0.001": Target("decode of 16 payloads, 0.001: against scatter_add_", 2, 1.5, "x"),
    "decode 0.01": Target("decode of 16 payloads, 0.01: against scatter_add_", 4.5, 1.5, "x"),
    "threads": Target("2 threads against 1, large", 1.2, 0.9, "x"),
    "bfloat16": Target("bfloat16 gradient against float32, large", 1.1, 1.0, "x"),
}
"""Key -> target, in the order of the table: 1e7 entries (large) or 1e6, density 0.001 unless said, one thread."""


@dataclass(frozen=True)
class CheckConfig:
    """Sizes and repeats of a check; the targets are for the defaults.

    Args:
        large: entries of the large vectors.
        small: entries of the small ones.
        repeats: rounds on the large vectors; three times as many on the small.
        seed: of the vectors.
    """

    large: int = 10_000_000
    small: int = 1_000_000
    repeats: int = 15
    seed: int = 0


def check_ops(config: CheckConfig, on_round: Callable[[], None] = lambda: None) -> Iterator[Row]:
    """Measure all targets on the backend in use; yields a row each, with ``measured`` and ``verdict``.

    One thread throughout, but for the one about two. Threads are put back at the end.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for key, measured in _measured(config, on_round):
            numel = config.small if key.startswith("small") else config.large
            about = {"backend": ops.backends().active, "numel": numel, "law": "normal", "repeats": config.repeats}
            yield OPS_TARGETS[key].row(key, measured) | about
    finally:
        torch.set_num_threads(threads)


def _measured(config: CheckConfig, tick: Callable[[], None]) -> Iterator[tuple[str, float]]:
    small = Vectors.draw("normal", config.small, config.seed)
    for key, measured in _against_memory(small, SMALL_REPEATS * config.repeats, tick).items():
        yield f"small {key}", measured
    large = Vectors.draw("normal", config.large, config.seed)
    yield from _large(large, config.repeats, tick).items()
    for key, measured in _against_memory(large, config.repeats, tick, density=0.01).items():
        yield f"{key} 0.01", measured
    for density in (0.001, 0.01):
        yield f"decode {density:g}", _decode(large.residual, density, config, tick)
    if (os.cpu_count() or 1) > 1:
        yield "threads", _two_threads(large, config.repeats, tick)


def _cases(vectors: Vectors, *names: str, density: float = DENSITY) -> dict[str, Case]:
    """Return operators on the backend in use: ``topk``, ``topk cold``, and the peers."""
    k, backend = max(1, round(density * vectors.numel)), ops.backends().active
    runs = [OperatorRun(operator, vectors, k, Switch()) for operator in operators(names, (backend,))]
    return {run.case.name: run.case for run in runs}


def _against_memory(
    vectors: Vectors, rounds: int, tick: Callable[[], None], density: float = DENSITY
) -> dict[str, float]:
    cases = _cases(vectors, "topk", density=density)
    add, _ = ceilings(vectors)
    interleave([add, *cases.values()], rounds, tick=tick)
    return {
        "steady": 100 * ratios(add.times, cases["topk"].times).median,
        "cold": 100 * ratios(add.times, cases["topk cold"].times).median,
    }


def _large(vectors: Vectors, rounds: int, tick: Callable[[], None]) -> dict[str, float]:
    cases = _cases(vectors, "topk", *_PEERS)
    narrow = dataclasses.replace(vectors, grads=(vectors.grads[0].bfloat16(), vectors.grads[1].bfloat16()))
    narrow_case = _cases(narrow, "topk")["topk"]
    add, _ = ceilings(vectors)
    known = _known_threshold(vectors)
    interleave([add, known, narrow_case, *cases.values()], rounds, tick=tick)
    steady, cold = cases["topk"].times, cases["topk cold"].times
    return {
        "steady": 100 * ratios(add.times, steady).median,
        "cold": 100 * ratios(add.times, cold).median,
        **{peer: ratios(cases[peer].times, steady).median for peer in _PEERS},
        "exactness": 100 * (ratios(steady, known.times).median - 1),
        "bfloat16": ratios(steady, narrow_case.times).median,
    }


def _known_threshold(vectors: Vectors) -> Case:
    """Take what is above the k-th magnitude, which is known beforehand: no search, no exact choice."""
    k, number = max(1, round(DENSITY * vectors.numel)), kernels()
    limits = [float(vectors.accumulated(side).abs().topk(k).values[-1]) for side in (0, 1)]

    def run(turn: int) -> None:
        grad, residual, limit = vectors.grads[turn % 2], vectors.residual, limits[turn % 2]
        if number is None:
            ops.accumulate_threshold(grad, residual, limit, k)
        else:  # without the moments, which the op measures on its way
            native.take_above(number, residual, limit, k, native.ANY, grad, residual, None)

    return Case("known threshold", run, lambda turn: vectors.reset(turn % 2))


def _decode(out: Tensor, density: float, config: CheckConfig, tick: Callable[[], None]) -> float:
    """Compare with ``scatter_add_`` on int32 indices that lie end to end, as an all-gather leaves them."""
    random = torch.Generator().manual_seed(config.seed)
    kept = max(1, round(density * out.numel()))
    parts = []
    for _ in range(WORKERS):
        indices = torch.randint(out.numel(), (kept,), generator=random).unique()
        values = torch.randn(indices.numel(), generator=random)
        parts.append(SparseGradient(indices.int(), values, out.numel()))
    indices, values = torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])
    ours = Case("scatter_mean", lambda _: ops.scatter_mean(parts, out))
    theirs = Case("scatter_add_", lambda _: out.zero_().scatter_add_(0, indices.long(), values).div_(WORKERS))
    interleave([ours, theirs], config.repeats, tick=tick)
    return ratios(theirs.times, ours.times).median


def _two_threads(vectors: Vectors, rounds: int, tick: Callable[[], None]) -> float:
    one, two = (_cases(vectors, "topk")["topk"] for _ in range(2))
    one.prepare, two.prepare = _with_threads(1, one.prepare), _with_threads(2, two.prepare)
    interleave([one, two], rounds, tick=tick)
    return ratios(one.times, two.times).median


def _with_threads(threads: int, prepare: Callable[[int], object]) -> Callable[[int], object]:
    def both(turn: int) -> None:
        torch.set_num_threads(threads)
        prepare(turn)

    return both


EXCHANGE = NetConfig(("vector:1e7",), ("100mbit",), ("ddp", "topk"), (4,), rounds=3, steps=10, budget_s=10)
END_TO_END = NetConfig(
    ("alexnet-small",),
    ("100mbit",),
    ("ddp", "ddp-fp16", "ddp-bf16", "ddp-powersgd", "paper-topk", "paper-dgc", "topk"),
    (2,),  # as many as cores: more would wait for each other's turn, not for the link
    batch_size=1,
    rounds=3,
    steps=10,
    budget_s=8,
)
SHORT = NetConfig(
    ("lenet5",),
    ("loopback",),
    ("ddp", "topk/auto"),
    (4,),
    rounds=240,  # pairs of rounds differ by a sixth on a shared machine: a standard error of 1.2 %
    steps=10,
    budget_s=0.7,
    together=True,
)
LONG = replace(SHORT, models=("resnet20",), rounds=60)
BYTES = NetConfig(  # a bucket of 25 MB, as DDP makes them
    ("vector:6.5e6",), ("unshaped",), ("topk", "topk/split", "topk/leader"), (2, 4, 8, 16), rounds=1, steps=5
)

NET_TARGETS = {
    "exchange": Target("exchange alone, 1e7, 100 Mbit, 4 workers: topk against all-reduce", 120, 120, "x"),
    "dense": Target("end to end, AlexNet's shape: topk against plain DDP", 5, 2.33, "x"),
    "paper-topk": Target("the same: against TopK as the paper had it", 5, 3.63, "x"),
    "paper-dgc": Target("the same: against DGC as the paper had it", 2, 1.51, "x"),
    "ddp-fp16": Target("the same: against DDP's fp16 hook", 1, 1, "x"),
    "ddp-bf16": Target("the same: against DDP's bf16 hook", 1, 1, "x"),
    "ddp-powersgd": Target("the same: against DDP's PowerSGD hook", 1, 1, "x"),
    "share": Target("the same: communication's share of plain DDP's step", 90, 90, "%"),
    "auto-lenet5": Target("loopback: auto over plain DDP, LeNet-5", 2, 2, "+%"),
    "auto-resnet20": Target("the same, ResNet-20", 2, 2, "+%"),
    "split": Target("bytes of split from 2 to 16 workers: most over least, less 1", 30, 30, "+%"),
    "leader": Target("bytes of leader, the same measure", 30, 30, "+%"),
    "allgather": Target("bytes of allgather over workers less 1, the same measure", 30, 30, "+%"),
    "bytes": Target("bytes by the kernel over accounted, largest error", 1, 1, "+%"),
}
"""Key -> target, in the order of the table; density 0.001 throughout."""


def check_net(seed: int, on_note: Callable[[str], None] = lambda _: None) -> Iterator[Row]:
    """Measure all targets; yields the rows that were measured, then a row of each target with its verdict."""

    def measured(plan: NetConfig) -> Iterator[Row]:
        for rows in NetBench(plan, on_note).run():
            yield from rows

    for judge, plan in (
        (_exchange, EXCHANGE), (_end_to_end, END_TO_END), (_loopback, SHORT), (_loopback, LONG),
        (_bytes, BYTES),
    ):  # fmt: skip
        rows = list(measured(replace(plan, seed=seed)))
        yield from rows
        for key, value in judge(rows).items():
            yield NET_TARGETS[key].row(key, value)


def _ratio(over: Row, under: Row) -> float:
    """Return the median of the rounds' ratios."""
    ratios = sorted(a / b for a, b in zip(over["round_step_s"], under["round_step_s"], strict=True))
    return float((ratios[(len(ratios) - 1) // 2] + ratios[len(ratios) // 2]) / 2)


def _exchange(rows: Sequence[Row]) -> dict[str, float]:
    found = {row["method"]: row for row in rows}
    worst = max(abs(off_percent(row)) for row in rows)
    return {"exchange": _ratio(found["ddp"], found["topk"]), "bytes": worst}


def _end_to_end(rows: Sequence[Row]) -> dict[str, float]:
    found = {row["method"]: row for row in rows}
    ours, dense = found["topk"], found["ddp"]
    ratios = {name: _ratio(row, ours) for name, row in found.items() if name in NET_TARGETS}
    share = {"share": 100 * dense["wait_s"] / dense["step_s"]} if dense["wait_s"] is not None else {}
    return {"dense": _ratio(dense, ours), **share, **ratios}


def _loopback(rows: Sequence[Row]) -> dict[str, float]:
    found = {row["method"]: row for row in rows}
    return {f"auto-{rows[0]['model']}": 100 * (_ratio(found["topk/auto"], found["ddp"]) - 1)}


def _bytes(rows: Sequence[Row]) -> dict[str, float]:
    spreads = {}
    for method, key in (("topk/split", "split"), ("topk/leader", "leader"), ("topk", "allgather")):
        each = [
            row["accounted_bytes"] / (row["workers"] - 1 if key == "allgather" else 1)
            for row in rows
            if row["method"] == method
        ]
        spreads[key] = 100 * (max(each) / min(each) - 1)
    return spreads


RACE_TARGETS = {
    "ddp-100": Target("100 Mbit/s: seconds to the loss, sparse AdamW against DDP", 20, 20, "x"),
    "powersgd-100": Target("the same against PowerSGD (torch's hook)", 5, 5, "x"),
    "ddp-20": Target("20 Mbit/s: local steps against DDP", 20, 20, "x"),
    "diloco8-20": Target("the same against DiLoCo with 8-bit values", 2, 2, "x"),
    "overlap-20": Target("20 Mbit/s: a step with overlapped rounds over one without exchange", 3, 3, "+%"),
}
"""Key -> target: to the loss that dense AdamW has at 80 % of its steps; the transformer, 4 workers."""


def check_race(race: Race) -> Iterator[Row]:
    """Run a race; yields its rows, then a row of each target with its verdict."""
    rows = []
    for some in race.run():
        rows += some
        yield from some
    for key, rate, ours, others in (
        ("ddp-100", "100mbit", "adamrows", "ddp"), ("powersgd-100", "100mbit", "adamrows", "powersgd"),
        ("ddp-20", "20mbit", "local", "ddp"), ("diloco8-20", "20mbit", "local", "diloco8"),
    ):  # fmt: skip
        yield RACE_TARGETS[key].row(key, lead(rows, rate, ours, others))
    (overlapped,) = NetBench(replace(OVERLAP, seed=race.seed), race.on_note).run()
    yield from overlapped
    found = {row["method"]: row for row in overlapped}
    extra = 100 * (_ratio(found[OVERLAPPED], found["alone"]) - 1)
    yield RACE_TARGETS["overlap-20"].row("overlap-20", extra)
