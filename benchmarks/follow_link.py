"""Does ``auto`` follow a link whose rate changes in mid-run? Its mean step in each part against the best fixed choice.

Real ranks in network namespaces, joined by links that ``tc tbf`` shapes (needs root). First each fixed choice is
measured at each rate; then one run with ``auto`` goes through all rates in turn. A part's mean has everything in it:
the steps before the change was noticed, looks at the link, trials. Steps in which ranks did not send alike are counted
as ``disagreed``.

    sudo python benchmarks/follow_link.py --rates 100mbit,10mbit,50mbit
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from gaussiank.lab.bench.net.methods import parse_method
from gaussiank.lab.bench.net.ranks import Ranks
from gaussiank.lab.bench.net.rates import UNSHAPED, parse_rate
from gaussiank.lab.bench.net.trainer import Trainer, Window
from gaussiank.lab.bench.net.wires import missing
from gaussiank.lab.bench.net.workloads import parse_workload
from gaussiank.lab.machine import origin

MAY_BE_SLOWER = 1.20


def begin(ranks: Ranks, model: str, method: str, density: float, batch_size: int, rate: str) -> None:
    """Make a model; ``auto`` looks at the link at the rate that it starts with."""
    ranks.shape(parse_rate(UNSHAPED))
    ranks.call("prepare", parse_workload(model), parse_method(method), density, batch_size, 0)
    ranks.shape(parse_rate(rate))
    ranks.call("attach")
    ranks.call("warm", 5)


def step_s(windows: Sequence[Window]) -> list[float]:
    """Return the seconds of each step, as means over workers."""
    return [statistics.fmean(row.step_s for row in step) for step in zip(*(one.steps for one in windows), strict=True)]


def disagreed(windows: Sequence[Window]) -> int:
    """Count the steps in which not all workers sent everything, or not all sent k."""
    return sum(len({row.spent.kept for row in step}) > 1 for step in zip(*(one.steps for one in windows), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", default="unshaped,100mbit,10mbit,50mbit,unshaped", help="parts of the run, by comma")
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--fixed", default="ddp,topk,topk/split", help="choices to compare with, by comma")
    parser.add_argument("--steps", type=int, default=400, help="of each part")
    parser.add_argument("--fixed-steps", type=int, default=60)
    arguments = parser.parse_args()
    if (reason := missing()) is not None:
        print(f"Links cannot be shaped: {reason}.", file=sys.stderr)
        return 1
    rates = arguments.rates.split(",")
    fixed: dict[str, dict[str, float]] = {rate: {} for rate in rates}
    setting = (arguments.density, arguments.batch_size)
    with Ranks(arguments.workers, isolated=True, make=Trainer) as ranks:
        for method in arguments.fixed.split(","):
            for rate, found in fixed.items():
                begin(ranks, arguments.model, method, *setting, rate)
                found[method] = statistics.median(step_s(ranks.call("measure", arguments.fixed_steps, 20.0, None)))
                ranks.call("drop")
        begin(ranks, arguments.model, "topk/auto", *setting, rates[0])
        late = 0
        for part, rate in enumerate(rates):
            ranks.shape(parse_rate(rate))
            windows = ranks.call("measure", arguments.steps, 1e6, None)
            steps = step_s(windows)
            best = min(fixed[rate], key=fixed[rate].__getitem__)
            ratio = statistics.fmean(steps) / fixed[rate][best]
            late += ratio > MAY_BE_SLOWER
            row: dict[str, Any] = {
                "part": part,
                "rate": rate,
                "auto_mean_ms": round(1e3 * statistics.fmean(steps), 2),
                "auto_median_ms": round(1e3 * statistics.median(steps), 2),
                "last_sent_kb": windows[0].steps[-1].spent.sent_bytes / 1e3,
                "best_fixed": best,
                "fixed_ms": {name: round(1e3 * seconds, 2) for name, seconds in fixed[rate].items()},
                "mean_over_best": round(ratio, 3),
                "disagreed": disagreed(windows),
                "load": round(os.getloadavg()[0], 1),
            }
            print(json.dumps(row), flush=True)
        print(json.dumps({"parts_slower_than_allowed": late, "model": arguments.model, **origin()}))
    return int(late > 0)


if __name__ == "__main__":
    sys.exit(main())
