"""Does ``auto`` follow a link whose rate changes in mid-run? Its mean step in each part against the best fixed choice.

Real ranks in network namespaces, joined by links that ``tc tbf`` shapes (needs root). One run with ``auto`` goes
through all rates in turn; each fixed choice is measured at each rate before it and again after it, for a machine
drifts. A part's mean has everything in it: the steps before the change was noticed, looks at the link, trials. Steps in
which ranks did not send alike are counted as ``disagreed``.

    sudo python benchmarks/follow_link.py --rates 100mbit,10mbit,50mbit
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from gaussiank_lab.bench.net.links import UNSHAPED, missing, parse_rate
from gaussiank_lab.bench.net.methods import parse_method
from gaussiank_lab.bench.net.run import Ranks
from gaussiank_lab.bench.net.training import Trainer, Window, parse_workload
from gaussiank_lab.machine import origin

MAY_BE_SLOWER = 1.20

Fixed = dict[str, dict[str, list[float]]]
"""Rate and method -> seconds of each step."""


def begin(ranks: Ranks, arguments: argparse.Namespace, method: str, rate: str) -> None:
    """Make a model; ``auto`` looks at the link at the rate that it starts with."""
    workload = parse_workload(arguments.model)
    ranks.shape(parse_rate(UNSHAPED))
    ranks.call("prepare", workload, parse_method(method), arguments.density, arguments.batch_size, 0)
    ranks.shape(parse_rate(rate))
    ranks.call("attach")
    ranks.call("warm", 5)


def step_s(windows: Sequence[Window]) -> list[float]:
    """Return the seconds of each step, as means over workers."""
    return [statistics.fmean(row.step_s for row in step) for step in zip(*(one.steps for one in windows), strict=True)]


def disagreed(windows: Sequence[Window]) -> int:
    """Count the steps in which not all workers sent everything, or not all sent k."""
    return sum(len({row.spent.kept for row in step}) > 1 for step in zip(*(one.steps for one in windows), strict=True))


def measure_fixed(ranks: Ranks, arguments: argparse.Namespace, fixed: Fixed) -> None:
    """Add steps of each fixed choice at each rate."""
    for rate, methods in fixed.items():
        for method, steps in methods.items():
            begin(ranks, arguments, method, rate)
            steps.extend(step_s(ranks.call("measure", arguments.fixed_steps, 20.0, None)))
            ranks.call("drop")


def follow(ranks: Ranks, arguments: argparse.Namespace, rates: Sequence[str]) -> list[list[Window]]:
    """Train with ``auto`` while the rate changes; returns the steps of each part."""
    begin(ranks, arguments, "topk/auto", rates[0])
    parts: list[list[Window]] = []
    for rate in rates:
        ranks.shape(parse_rate(rate))
        parts.append(ranks.call("measure", arguments.steps, 1e6, None))
    ranks.call("drop")
    return parts


def compared(rate: str, windows: Sequence[Window], fixed: dict[str, list[float]]) -> dict[str, Any]:
    """Hold a part against the fixed choice with the least mean step."""
    steps = step_s(windows)
    means = {method: statistics.fmean(measured) for method, measured in fixed.items()}
    best = min(means, key=means.__getitem__)
    return {
        "rate": rate,
        "auto_mean_ms": round(1e3 * statistics.fmean(steps), 2),
        "auto_median_ms": round(1e3 * statistics.median(steps), 2),
        "last_sent_kb": windows[0].steps[-1].spent.sent_bytes / 1e3,
        "best_fixed": best,
        "fixed_mean_ms": {method: round(1e3 * seconds, 2) for method, seconds in means.items()},
        "mean_over_best": round(statistics.fmean(steps) / means[best], 3),
        "disagreed": disagreed(windows),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", default="unshaped,100mbit,10mbit,50mbit,unshaped", help="parts of the run, by comma")
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--fixed", default="ddp,topk,topk/split", help="choices to compare with, by comma")
    parser.add_argument("--steps", type=int, default=400, help="of each part")
    parser.add_argument("--fixed-steps", type=int, default=60, help="of each fixed choice, before and after")
    arguments = parser.parse_args()
    if (reason := missing()) is not None:
        print(f"Links cannot be shaped: {reason}.", file=sys.stderr)
        return 1
    rates = arguments.rates.split(",")
    with Ranks(arguments.workers, isolated=True, make=Trainer) as ranks:
        fixed: Fixed = {rate: {method: [] for method in arguments.fixed.split(",")} for rate in rates}
        measure_fixed(ranks, arguments, fixed)
        followed = follow(ranks, arguments, rates)
        measure_fixed(ranks, arguments, fixed)
    rows = [compared(rate, windows, fixed[rate]) for rate, windows in zip(rates, followed, strict=True)]
    for part, row in enumerate(rows):
        print(json.dumps({"part": part, **row}))
    late = sum(row["mean_over_best"] > MAY_BE_SLOWER for row in rows)
    print(json.dumps({"parts_slower_than_allowed": late, "model": arguments.model, **origin()}))
    return int(late > 0)


if __name__ == "__main__":
    sys.exit(main())
