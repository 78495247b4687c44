"""What the network lab is to show, measured: each promise with its target, its floor, and what this machine gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from gaussiank_lab.bench.opscheck import Promise
from gaussiank_lab.bench.rows import Row
from gaussiank_lab.machine import origin

from .netrun import NetBench, NetConfig
from .nettable import off_percent

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

PROMISES = {
    "exchange": Promise("exchange alone, 1e7, 100 Mbit, 4 workers: topk against all-reduce", 120, 120, "x"),
    "dense": Promise("end to end, AlexNet's shape: topk against plain DDP", 5, 2.33, "x"),
    "paper-topk": Promise("the same: against TopK as the paper had it", 5, 3.63, "x"),
    "paper-dgc": Promise("the same: against DGC as the paper had it", 2, 1.51, "x"),
    "ddp-fp16": Promise("the same: against DDP's fp16 hook", 1, 1, "x"),
    "ddp-bf16": Promise("the same: against DDP's bf16 hook", 1, 1, "x"),
    "ddp-powersgd": Promise("the same: against DDP's PowerSGD hook", 1, 1, "x"),
    "share": Promise("the same: communication's share of plain DDP's step", 90, 90, "%"),
    "auto-lenet5": Promise("loopback: auto over plain DDP, LeNet-5", 2, 2, "+%"),
    "auto-resnet20": Promise("the same, ResNet-20", 2, 2, "+%"),
    "split": Promise("bytes of split from 2 to 16 workers: most over least, less 1", 30, 30, "+%"),
    "leader": Promise("bytes of leader, likewise", 30, 30, "+%"),
    "allgather": Promise("bytes of allgather over workers less 1, likewise", 30, 30, "+%"),
    "bytes": Promise("bytes by the kernel over accounted, largest error", 1, 1, "+%"),
}
"""Key -> promise, in the order of the table; density 0.001 throughout."""


def check(seed: int, on_note: Callable[[str], None] = lambda _: None) -> Iterator[Row]:
    """Measure all promises; yields the rows that were measured, then a row of each promise with its verdict."""

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
            promise = PROMISES[key]
            yield {
                "kind": "check", "key": key, **promise._asdict(), "measured": value,
                "verdict": promise.verdict(value), **origin(),
            }  # fmt: skip


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
    ratios = {name: _ratio(row, ours) for name, row in found.items() if name in PROMISES}
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
