"""The cost model against a run of the network lab: fitted on half of its settings, judged on the rest."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from gaussiank_lab.bench.net.links import parse_rate
from gaussiank_lab.bench.net.methods import ALONE, DDP, parse_method
from gaussiank_lab.bench.rows import Row, read_rows
from gaussiank_lab.bench.tables import columns, ms_text
from gaussiank_lab.cluster.advice import WIRES, compact_wire
from gaussiank_lab.cluster.scenario import OVERLAP
from gaussiank_lab.cluster.shapes import bucket_numels
from gaussiank_lab.sim import (
    STRAIGHT_BYTES,
    Bucket,
    Cluster,
    Curve,
    Device,
    Link,
    Method,
    Scenario,
    Tier,
    Workload,
    simulate,
)

_OPERATIONS = {"dense": 1, "allgather": 1, "split": 2, "leader": 2}
"""Collective -> operations that follow each other and in which all wait for all; a broadcast waits for one."""

_TOGETHER = (
    ("reach",),
    ("unshaped_bits_s",),
    ("spread",),
    ("ring_s", "ring_growth"),
    ("waiting_s", "growth"),
    ("later_s", "later_growth"),
    ("pair_s",),
)
_ROUNDS = 5
_Place = tuple[str, int, str]


class Knobs(NamedTuple):
    """What is fitted; the rest is measured.

    Attributes:
        reach: share of a link's rate that arrives.
        unshaped_bits_s: bits a second where nothing slows a link down.
        spread: standard deviation of a worker's computing, as a share of it; the slowest is waited for.
        ring_s: seconds that two workers wait for the slower one in an all-reduce, however little it sends.
        ring_growth: of that with more workers, as a power of their number; where cores are few they wait for turns too,
            in a ring at each of its steps.
        waiting_s: the same in the first operation of an exchange in which messages go straight.
        growth: of that, likewise.
        later_s: seconds of each operation that follows another.
        later_growth: of that, likewise.
        pair_s: seconds that the cores need for each pair of workers of ``split``, which cut, merge and add up regions.
    """

    reach: float = 0.9
    unshaped_bits_s: float = 1e10
    spread: float = 0.0
    ring_s: float = 1e-3
    ring_growth: float = 1.0
    waiting_s: float = 1e-3
    growth: float = 1.0
    later_s: float = 1e-3
    later_growth: float = 1.0
    pair_s: float = 0.0

    def waits(self, workers: int, collective: str, compute_s: float) -> float:
        """Return the seconds that an exchange waits, for the slowest worker's computing as well."""
        if workers == 1:
            return 0.0
        pairs, slowest = workers / 2, _NORMAL.inv_cdf((workers - 0.375) / (workers + 0.25))  # Blom 1958
        waits_s = (
            self.ring_s * pairs**self.ring_growth if collective == "dense" else self.waiting_s * pairs**self.growth
        )
        first_s = slowest * self.spread * compute_s + waits_s
        later_s = (_OPERATIONS[collective] - 1) * self.later_s * pairs**self.later_growth
        swaps_s = self.pair_s * workers * (workers - 1) / 2 if collective == "split" else 0.0
        return float(first_s + later_s + swaps_s)


_NORMAL = statistics.NormalDist()
_SECONDS = tuple(10 ** (-5 + 0.05 * step) for step in range(71))
_POWERS = tuple(0.2 * step for step in range(13))
_CHOICES: Mapping[str, tuple[float, ...]] = {
    "reach": tuple(0.5 + 0.05 * step for step in range(11)),
    "unshaped_bits_s": tuple(10 ** (8.5 + 0.25 * step) for step in range(10)),
    "spread": tuple(0.02 * step for step in range(26)),
    "ring_s": _SECONDS,
    "ring_growth": _POWERS,
    "waiting_s": _SECONDS,
    "growth": _POWERS,
    "later_s": _SECONDS,
    "later_growth": _POWERS,
    "pair_s": (0.0, *_SECONDS),
}


class Judged(NamedTuple):
    """One setting and method.

    Attributes:
        row: what was measured.
        predicted_s: seconds of a step.
        held_out: whether the fit has not seen it.
    """

    row: Row
    predicted_s: float
    held_out: bool

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return float(self.predicted_s / self.row["step_s"] - 1)


def judge(rows: Sequence[Row]) -> tuple[Knobs, list[Judged]]:
    """Fit on every second setting and predict all of them.

    A setting is a model, a number of workers, a rate and a method. Computing is not predicted: forward, backward and
    optimizer are those of the run without exchange, and selection and decoding are taken from the rows of the fit.

    Args:
        rows: of a run of ``bench net``; methods that the cost model does not know are left out.

    Raises:
        ValueError: fewer than four settings that it knows.
    """
    alone = _alone(rows)
    known = [
        row for row in rows if row.get("kind") == "net" and method_of(row) is not None and _place(row) in alone
    ]  # fmt: skip
    known.sort(key=lambda row: (row["model"], row["workers"], row["rate_mbit"] or math.inf, row["method"]))
    if len(known) < 4:
        raise ValueError(
            "RUN must hold at least 4 rows of ddp, topk, topk/split and the like, with alone beside them, got "
            f"{len(known)}. Measure at more --rates; auto, tree and the paper's forms are not predicted."
        )
    held_out = _held_out(known)
    seen = [number for number, held in enumerate(held_out) if not held]
    predictor = _Predictor(known, alone, _device([known[number] for number in seen]))
    knobs = _fit(predictor, seen)
    return knobs, [Judged(row, predictor.step_s(number, knobs), held_out[number]) for number, row in enumerate(known)]


def _held_out(rows: Sequence[Row]) -> list[bool]:
    """Choose every second method on one link, and the others on the next, so that the fit sees all of both."""
    links = [(row["model"], row["workers"], row["rate"]) for row in rows]
    numbers = {link: number for number, link in enumerate(dict.fromkeys(links))}
    return [(links[:place].count(link) + numbers[link]) % 2 == 1 for place, link in enumerate(links)]


def method_of(row: Row) -> Method | None:
    """Return a row's method as the cost model has it; None for what it does not know."""
    if row["model"].startswith("vector") or row["method"] == ALONE:
        return None
    if row["method"] in (DDP, "ddp-bf16", "ddp-fp16"):
        return Method(row["method"], "dense", value_bytes=4 if row["method"] == DDP else 2)
    method = parse_method(row["method"])
    if method.family != "ours" or method.collective not in _OPERATIONS or method.wire not in (None, *WIRES):
        return None
    wire = WIRES[method.wire or compact_wire(accelerator=False)]
    return Method(method.name, method.compressor, row["density"], wire, method.collective)


class _Predictor:
    """Predict the steps of some rows; what does not wait is simulated once for each link.

    Args:
        rows: what to predict.
        alone: what computing takes beside them.
        device: how long selection and decoding take.
    """

    def __init__(self, rows: Sequence[Row], alone: Mapping[_Place, Row], device: Device) -> None:
        self.rows, self._alone, self._device = rows, alone, device
        self._kinds = [(method_of(row), parse_rate(row["rate"])) for row in rows]
        self._simulated: dict[tuple[int, Link], float] = {}

    def step_s(self, number: int, knobs: Knobs) -> float:
        """Return the seconds of a step of row ``number``."""
        row = self.rows[number]
        method, rate = self._kinds[number]
        assert method is not None  # known
        if rate.bits_s is None:
            link = Link(row["rate"], knobs.unshaped_bits_s)
        else:
            link = Link(row["rate"], knobs.reach * rate.bits_s, burst_bytes=rate.burst_bytes)
        if (number, link) not in self._simulated:
            cluster = Cluster("lab", (Tier("rack", link),), straight_bytes=STRAIGHT_BYTES)
            scenario = Scenario(_workload(self._alone[_place(row)]), self._device, cluster, OVERLAP)
            self._simulated[number, link] = simulate(scenario, method, workers=row["workers"]).step_s
        collective, compute_s = "dense" if method.sends_all else method.collective, self._alone[_place(row)]["step_s"]
        return self._simulated[number, link] + knobs.waits(row["workers"], collective, compute_s)


def _place(row: Row) -> _Place:
    return row["model"], row["workers"], row["rate"]


def _alone(rows: Sequence[Row]) -> dict[_Place, Row]:
    """Return what computing takes, in each round beside the others: a machine is faster at one time than at another."""
    return {_place(row): row for row in rows if row.get("method") == ALONE}


def _workload(alone: Row) -> Workload:
    """Cut the model into DDP's buckets, and its backward in proportion."""
    numels = bucket_numels(alone["numel"])
    buckets = tuple(Bucket(numel, alone["backward_s"] * numel / alone["numel"]) for numel in numels)
    return Workload(alone["model"], buckets, alone["forward_s"], alone["optimizer_s"], samples=alone["batch_size"])


def _device(rows: Sequence[Row]) -> Device:
    """Take selection and decoding from measured rows, over entries of the gradient."""
    selected: dict[str, dict[int, list[float]]] = {}
    cleared: dict[int, list[float]] = {}
    for row in rows:
        method = method_of(row)
        if method is None or method.sends_all:
            continue
        selected.setdefault(method.compressor, {}).setdefault(row["numel"], []).append(row["select_s"])
        cleared.setdefault(row["numel"], []).append(row["finish_s"])
    return Device("lab", select={name: _curve(points) for name, points in selected.items()}, clear=_curve(cleared))


def _curve(points: Mapping[int, Sequence[float]]) -> Curve:
    return Curve.of((numel, max(1e-9, statistics.median(points[numel]))) for numel in sorted(points))


def _fit(predictor: _Predictor, seen: Sequence[int]) -> Knobs:
    """Turn the knobs, those that belong together at once, to where the mean error of logarithms is least."""

    def loss(knobs: Knobs) -> float:
        return statistics.fmean(
            abs(math.log(predictor.step_s(number, knobs) / predictor.rows[number]["step_s"])) for number in seen
        )

    knobs = Knobs()
    for _ in range(_ROUNDS):
        for names in _TOGETHER:
            choices = itertools.product(*(_CHOICES[name] for name in names))
            turned = (knobs._replace(**dict(zip(names, choice, strict=True))) for choice in choices)
            knobs = min(turned, key=loss)
    return knobs


TIE = 0.05
"""Measured times that differ by less are repeated in another order as often as not."""


def show_predictions(out: Path, console: Console) -> None:
    """Print every setting of a run, and how far off the half is that the fit has not seen.

    Args:
        out: directory that ``bench net`` has written.
        console: where to print.

    Raises:
        FileNotFoundError: it holds no rows.
        ValueError: too few that the cost model knows.
    """
    knobs, judged = judge(read_rows(out))
    table = columns(("setting", "method", "measured\nms", "predicted\nms", "error\n%", "held\nout"), left=2)
    for one in judged:
        setting = f"{one.row['model']}, {one.row['workers']} workers, {one.row['rate']}"
        times = (ms_text(one.row["step_s"]), ms_text(one.predicted_s))
        table.add_row(setting, one.row["method"], *times, f"{100 * one.error:+.0f}", "*" if one.held_out else "")
    console.print(table)
    console.print(
        f"\nFitted: {100 * knobs.reach:.0f} % of a rate arrives, {knobs.unshaped_bits_s / 1e9:.1f} Gbit/s unshaped, "
        f"computing spreads by {100 * knobs.spread:.0f} %. Two workers wait for {1e3 * knobs.ring_s:.2f} ms in an "
        f"all-reduce, growing as their number to the {knobs.ring_growth:.1f}; for {1e3 * knobs.waiting_s:.2f} ms, to "
        f"the {knobs.growth:.1f}, in other first operations, and {1e3 * knobs.later_s:.2f} ms, to the "
        f"{knobs.later_growth:.1f}, in each that follows; a split takes {1e3 * knobs.pair_s:.2f} ms for each pair.",
        highlight=False,
    )
    console.print(verdict(judged), highlight=False)


def verdict(judged: Sequence[Judged]) -> str:
    """Sum up in a sentence how good the predictions are."""
    held = [abs(one.error) for one in judged if one.held_out]
    right, clear = order_right(judged), order_right(judged, tie=TIE)
    order = (
        f" The faster of two methods is named in {100 * right:.0f} % of pairs, and in {100 * clear:.0f} % of those "
        f"that differ by over {100 * TIE:.0f} %."
        if math.isfinite(right)
        else ""
    )
    _, worst = max(regrets(judged), key=lambda pair: pair[1])
    return (
        f"Held out: median error {100 * statistics.median(held):.0f} %, worst {100 * max(held):.0f} %, in {len(held)} "
        f"of {len(judged)} settings.{order} Taking the method that is predicted to be fastest costs at most "
        f"{100 * worst:.0f} % over the fastest measured."
    )


def regrets(judged: Sequence[Judged]) -> list[tuple[str, float]]:
    """Return, for each link, the method predicted to be fastest, and by how much it was slower than the fastest."""
    links: dict[tuple[str, int, str], list[Judged]] = {}
    for one in judged:
        links.setdefault((one.row["model"], one.row["workers"], one.row["rate"]), []).append(one)
    found = []
    for same in links.values():
        chosen = min(same, key=lambda one: one.predicted_s).row
        found.append((chosen["method"], chosen["step_s"] / min(one.row["step_s"] for one in same) - 1))
    return found


def order_right(judged: Sequence[Judged], tie: float = 0.0) -> float:
    """Return the share of pairs of methods, on one link, of which the faster one is predicted; NaN without a pair.

    Args:
        judged: settings with their predictions.
        tie: how much slower, as a share, the slower one must have been measured for a pair to count.
    """
    pairs = [
        (first.row["step_s"] < second.row["step_s"]) == (first.predicted_s < second.predicted_s)
        for first, second in itertools.combinations(judged, 2)
        if all(first.row[name] == second.row[name] for name in ("model", "workers", "rate"))
        and abs(math.log(first.row["step_s"] / second.row["step_s"])) >= math.log1p(tie)
    ]
    return sum(pairs) / len(pairs) if pairs else math.nan
