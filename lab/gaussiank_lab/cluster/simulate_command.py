"""What ``gaussiank simulate`` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

import gaussiank
from gaussiank_lab.outputs import write_whole
from gaussiank_lab.sim import Prediction, chrome_trace_text, predict, simulate

from .methods import DEFAULT_NAME, DENSE, DENSE_16, all_methods
from .setting import Setting
from .tables import best_dense, count_text, detail_table, scaling_table

FORMAT = 1
COUNTS = tuple(2**e for e in range(13))
STEPS = 20
MOST_DETAILED = 3


def parse_counts(text: str | None) -> tuple[int, ...] | None:
    """Read numbers of workers, by comma; None stays None.

    Raises:
        ValueError: not whole numbers of at least 1.

    Example:
        >>> parse_counts("16, 4")
        (4, 16)
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or any(not word.isdecimal() or int(word) < 1 for word in words):
        raise ValueError(
            f"workers must be whole numbers of at least 1, by comma, got {text!r}. Give 4,16, for example."
        )
    return tuple(sorted({int(word) for word in words}))


def require_price(price: float | None) -> None:
    """Raise unless ``price`` can be one.

    Raises:
        ValueError: it is not above 0.
    """
    if price is not None and not price > 0:
        raise ValueError(f"price must be above 0, got {price:g}. Leave it out to count hours.")


def run_simulation(setting: Setting, counts: Sequence[int], density: float, seed: int = 0) -> list[Prediction]:
    """Predict all methods with each number of workers.

    Raises:
        ValueError: a density out of its range, or more workers than the cluster has.
    """
    methods = all_methods(density, accelerator=setting.accelerator)
    return predict(setting.scenario, methods, counts, steps=STEPS, seed=seed)


def counts_of(setting: Setting, given: tuple[int, ...] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of workers to simulate, and those to show in detail.

    Args:
        setting: says how many there are.
        given: what the user asked for; None takes 1 to 4096, as far as the cluster has them, and details its own.
    """
    if given is not None:
        return given, given[-MOST_DETAILED:]
    most = setting.scenario.cluster.most_workers
    return tuple(sorted({*(count for count in COUNTS if count <= most), setting.workers})), (setting.workers,)


def show_simulation(
    console: Console,
    setting: Setting,
    predictions: Sequence[Prediction],
    detailed: Sequence[int],
    density: float,
    price: float | None = None,
) -> None:
    """Print a table for each number of workers in ``detailed``, that of scaling, and where the numbers come from."""
    model = setting.scenario.workload
    for count in detailed:
        rows = [row for row in predictions if row.workers == count]
        title = f"{model.name}, {count_text(model.numel)}, on {setting.label}, {count} workers, density {density:g}"
        console.print(detail_table(rows, title, price))
        console.print()
    counts = sorted({row.workers for row in predictions})
    if len(counts) > len(detailed):
        shown = counts if len(counts) <= 7 else counts[::2]
        rows = [row for row in predictions if row.workers in shown]
        console.print(scaling_table(rows, "Scaling efficiency (%) over workers"))
        console.print()
    _show_origin(console, setting)


def record(setting: Setting, predictions: Sequence[Prediction], density: float, seed: int) -> dict[str, Any]:
    """Return everything as JSON values."""
    return {
        "format": FORMAT,
        "kind": "gaussiank simulation",
        "gaussiank": gaussiank.__version__,
        "setting": setting.label,
        "model": setting.scenario.workload.name,
        "numel": setting.scenario.workload.numel,
        "density": density,
        "seed": seed,
        "sources": list(setting.sources),
        "assumed": list(setting.assumed),
        "predictions": [asdict(row) for row in predictions],
    }


def record_text(setting: Setting, predictions: Sequence[Prediction], density: float, seed: int) -> str:
    """Return the record as text."""
    return json.dumps(record(setting, predictions, density, seed), indent=1)


def write_figures(
    out: Path, setting: Setting, predictions: Sequence[Prediction], workers: int, density: float, seed: int = 0
) -> list[Path]:
    """Write the scaling figure, the timeline's, and a Chrome trace of each method in it."""
    from .figures import save, scaling_figure, timeline_figure

    scenario, default = setting.scenario, DEFAULT_NAME
    rows = [row for row in predictions if row.workers == workers]
    best = min((row for row in rows if row is not best_dense(rows)), key=lambda row: row.step_s).method
    names = dict.fromkeys([DENSE.name, DENSE_16.name, default, "gaussiank", best])
    methods = {method.name: method for method in all_methods(density, accelerator=setting.accelerator)}
    shown = dict.fromkeys([best_dense(rows).method, default, best])
    timelines = [simulate(scenario, methods[name], workers, steps=1, seed=seed) for name in shown]
    paths = [
        save(scaling_figure(predictions, list(names)), out / "scaling.svg"),
        save(timeline_figure(timelines), out / "timeline.svg"),
    ]
    for timeline in timelines:
        path = out / f"trace-{timeline.method.name.replace(' ', '-')}.json"
        write_whole(path, chrome_trace_text(timeline).encode())
        paths.append(path)
    return paths


def show_paper(console: Console) -> None:
    """Print the paper's table, regenerated, with what was assumed for it."""
    from .paper_table import ASSUMPTIONS, PRESET, VERDICT, paper_rows, paper_tables

    for table in paper_tables(paper_rows()):
        console.print(table)
        console.print()
    console.print(VERDICT + "\n", highlight=False)
    _show_lines(console, "Assumed", (*ASSUMPTIONS, f"cluster and GPUs: gaussiank simulate --preset {PRESET}"))


def _show_origin(console: Console, setting: Setting) -> None:
    _show_lines(console, "From", setting.sources)
    _show_lines(console, "Assumed", setting.assumed)


def _show_lines(console: Console, head: str, lines: Sequence[str]) -> None:
    console.print(f"{head}:", highlight=False)
    for line in lines:
        console.print(f"  - {line}", highlight=False)
