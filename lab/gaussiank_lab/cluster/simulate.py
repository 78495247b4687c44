"""What ``gaussiank simulate`` prints: tables of every method, and the paper's table regenerated."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import Box
from rich.console import Console
from rich.table import Table

import gaussiank
from gaussiank_lab.cluster.advice import (
    DEFAULT_NAME,
    DENSE,
    DENSE_16,
    DILOCO,
    LOCAL,
    LOCAL_EVERY,
    all_methods,
    default_method,
)
from gaussiank_lab.cluster.scenario import ScenarioSetting, of_preset
from gaussiank_lab.outputs import write_whole
from gaussiank_lab.sim import Method, Prediction, chrome_trace_text, predict, predict_local, simulate

UNDERLINED = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


def seconds_text(seconds: float) -> str:
    """Return a time with three digits and its unit.

    Example:
        >>> seconds_text(0.01234), seconds_text(12.3), seconds_text(0.0000123), seconds_text(0)
        ('12.3 ms', '12.3 s', '12.3 us', '0')
    """
    if seconds <= 0:
        return "0"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds / 1e-6)} us"


def bytes_text(size: float) -> str:
    """Return a size with three digits and its unit.

    Example:
        >>> bytes_text(8016), bytes_text(2.5e8), bytes_text(0)
        ('8.02 kB', '250 MB', '0')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.9995 * scale:
            return f"{_digits(size / scale)} {unit}"
    return f"{size:.0f} B" if size else "0"


def bits_text(rate: float) -> str:
    """Return a bandwidth with three digits and its unit.

    Example:
        >>> bits_text(9.41e9), bits_text(1e8)
        ('9.41 Gb/s', '100 Mb/s')
    """
    for unit, scale in (("Tb/s", 1e12), ("Gb/s", 1e9), ("Mb/s", 1e6)):
        if rate >= 0.9995 * scale:
            return f"{_digits(rate / scale)} {unit}"
    return f"{_digits(rate / 1e3)} kb/s"


def count_text(count: float) -> str:
    """Return a number of parameters with three digits.

    Example:
        >>> count_text(61_706), count_text(25_557_032), count_text(1.31e9)
        ('61.7k', '25.6M', '1.31B')
    """
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * scale:
            return f"{_digits(count / scale)}{unit}"
    return f"{count:.0f}"


def times_text(factor: float) -> str:
    """Return a gain; two decimals where they matter.

    Example:
        >>> times_text(1.033), times_text(98.9)
        ('1.03x', '98.9x')
    """
    return f"{factor:.2f}x" if factor < 9.995 else f"{_digits(factor)}x"


def best_dense(predictions: Sequence[Prediction]) -> Prediction:
    """Return the faster of the dense methods among predictions for one number of workers."""
    return min((row for row in predictions if row.method in (DENSE.name, DENSE_16.name)), key=lambda row: row.step_s)


def detail_table(predictions: Sequence[Prediction], title: str, price: float | None = None) -> Table:
    """Build the table of all methods with one number of workers.

    Args:
        predictions: one a method.
        title: above the table.
        price: of a worker's hour, or None to count the hours of all workers together.
    """
    headers = ("step", "vs best\ndense", "scaling\n%", "waits", "selects", "sent by\nworker")
    cost = "epoch,\nhours" if price is None else "epoch,\ncost"
    table = plain_table(title, ("method", *headers, cost))
    baseline = best_dense(predictions)
    for row in predictions:
        money = row.worker_hours if price is None else row.worker_hours * price
        gain, efficiency = times_text(baseline.step_s / row.step_s), f"{100 * row.efficiency:.0f}"
        waits, selects, sent = seconds_text(row.exposed_s), seconds_text(row.select_s), bytes_text(row.sent_bytes)
        table.add_row(row.method, seconds_text(row.step_s), gain, efficiency, waits, selects, sent, _digits(money))
    return table


def scaling_table(predictions: Sequence[Prediction], title: str) -> Table:
    """Build the table of scaling efficiency, in percent, over methods and numbers of workers."""
    counts = sorted({row.workers for row in predictions})
    table = plain_table(title, ("method", *map(str, counts)))
    for name in dict.fromkeys(row.method for row in predictions):
        found = {row.workers: row for row in predictions if row.method == name}
        table.add_row(name, *(_percent(found[count].efficiency) for count in counts))
    return table


def plain_table(title: str, headers: Sequence[str]) -> Table:
    """Return an empty table whose first column is text and whose others are numbers."""
    table = Table(box=UNDERLINED, show_edge=False, padding=0, header_style="bold", title=title, title_justify="left")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index else "left", no_wrap=True)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.0995 else f"{100 * share:.2g}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


PRESET, WORKERS, DENSITY = "10gbe-16xV100", 16, 0.001
MODELS = ("alexnet", "vgg16-imagenet", "resnet50", "inception-v4")
HEADLINE = {"Dense": 2.33, "TopK": 3.63, "DGC": 1.51}
"""How many times faster Gaussian_k is said to be, at most, than each other method: the paper's abstract."""
_PUBLISHED = {
    "TopK": "published-topk",
    "DGC": "published-dgc",
    "Trimmed": "published-trimmedtopk",
    "GaussianK": "published-gaussiank",
}
METHODS: dict[str, Method] = {
    "Dense": DENSE,
    **{name: Method(name, key, DENSITY, scope="model") for name, key in _PUBLISHED.items()},
    "Dense bf16": DENSE_16,
    "today": default_method(DENSITY, accelerator=True),
}
"""The published code selects once, on the whole model, when backward has ended; dense messages overlap with it."""
ASSUMPTIONS = (
    "sparse methods as published: one selection of the whole model after backward, nothing overlaps; dense overlaps",
    "published Top_k: torch.topk of torch 1.1, 12.8 ns an element, measured on a P100 (pytorch issue 22812); "
    "DGC: the same on a sample of 1 %",
    "published GaussianK, Trimmed: 70 and 150 bytes an element at the memory's bandwidth, counted from torch operators",
    "today: exact Top_k of each bucket in one pass of 12 bytes an element, chunks+bf16; not measured on a GPU",
    "input: 1,776 images/s a GPU; it bounds AlexNet: a slower one would bring its gains down",
)
VERDICT = (
    "The headline is not reproduced by these assumptions, and nothing was fitted to it: gains over Dense and TopK come "
    "out larger on the models with most parameters per unit of work, those over DGC smaller. What the published DGC "
    "and the input pipeline of that cluster cost is not known."
)


@dataclass(frozen=True)
class PaperRow:
    """One model.

    Args:
        model: its name.
        step_s: method -> seconds of a step.
    """

    model: str
    step_s: dict[str, float]

    def gain(self, other: str, over: str = "GaussianK") -> float:
        """Return how many times faster ``over`` is than ``other``."""
        return self.step_s[other] / self.step_s[over]


def paper_rows(steps: int = 20, seed: int = 0) -> list[PaperRow]:
    """Simulate the paper's four models with its five methods, 16-bit dense and today's default."""
    rows = []
    for model in MODELS:
        scenario = of_preset(PRESET, model).scenario
        times = {
            name: simulate(scenario, method, WORKERS, steps=steps, seed=seed, traced=1).step_s
            for name, method in METHODS.items()
        }
        rows.append(PaperRow(model, times))
    return rows


def paper_tables(rows: list[PaperRow]) -> tuple[Table, Table]:
    """Build the table of step times, and that of the largest gains beside the headline."""
    times = plain_table("Predicted step, 16 V100, 10 GbE, density 0.001, batch 128 a worker", ("model", *METHODS))
    for row in rows:
        times.add_row(row.model, *(seconds_text(row.step_s[name]) for name in METHODS))
    headers = ("", "paper:\nat most", "here:\nat most", *(row.model.removesuffix("-imagenet") for row in rows))
    gains = plain_table("GaussianK as published, times faster than", headers)
    for name in ("Dense", "TopK", "DGC", "Trimmed"):
        here = [row.gain(name) for row in rows]
        said = f"{HEADLINE[name]:.2f}" if name in HEADLINE else "–"
        gains.add_row(name, said, f"{max(here):.2f}", *(f"{gain:.2f}" for gain in here))
    today = [min(row.step_s["Dense"], row.step_s["Dense bf16"]) / row.step_s["today"] for row in rows]
    gains.add_row("today over best dense", "–", f"{max(today):.2f}", *(f"{gain:.2f}" for gain in today))
    return times, gains


FORMAT = 1
COUNTS = tuple(2**e for e in range(13))
STEPS = 20
MOST_DETAILED = 3


def parse_counts(text: str | None) -> tuple[int, ...] | None:
    """Read numbers of workers, separated by commas; None stays None.

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
            f"workers must be whole numbers of at least 1 separated by commas, got {text!r}. Give 4,16, for example."
        )
    return tuple(sorted({int(word) for word in words}))


def require_price(price: float | None) -> None:
    """Raise unless ``price`` can be one.

    Raises:
        ValueError: it is not above 0.
    """
    if price is not None and not price > 0:
        raise ValueError(f"price must be above 0, got {price:g}. Leave it out to count hours.")


def run_simulation(setting: ScenarioSetting, counts: Sequence[int], density: float, seed: int = 0) -> list[Prediction]:
    """Predict all methods with each number of workers.

    Raises:
        ValueError: a density out of its range, or more workers than the cluster has.
    """
    methods = all_methods(density, accelerator=setting.accelerator)
    often = predict(setting.scenario, methods, counts, steps=STEPS, seed=seed)
    seldom = [predict_local(setting.scenario, one, counts, LOCAL_EVERY, seed=seed) for one in (LOCAL, DILOCO)]
    return [*often, *itertools.chain(*seldom)]


def counts_of(setting: ScenarioSetting, given: tuple[int, ...] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
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
    setting: ScenarioSetting,
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
        console.print(
            f"local steps: the difference of {LOCAL_EVERY} steps, density {LOCAL.density:g}, rice+2bit, as LocalSteps "
            "has it; diloco: all of it. Steps are means over a round; what they cost in accuracy: docs/local-steps.md.",
            highlight=False,
        )
        console.print()
    counts = sorted({row.workers for row in predictions})
    if len(counts) > len(detailed):
        shown = counts if len(counts) <= 7 else counts[::2]
        rows = [row for row in predictions if row.workers in shown]
        console.print(scaling_table(rows, "Scaling efficiency (%) over workers"))
        console.print()
    _show_origin(console, setting)


def record(setting: ScenarioSetting, predictions: Sequence[Prediction], density: float, seed: int) -> dict[str, Any]:
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


def record_text(setting: ScenarioSetting, predictions: Sequence[Prediction], density: float, seed: int) -> str:
    """Return the record as text."""
    return json.dumps(record(setting, predictions, density, seed), indent=1)


def write_figures(
    out: Path, setting: ScenarioSetting, predictions: Sequence[Prediction], workers: int, density: float, seed: int = 0
) -> list[Path]:
    """Write the scaling figure, the timeline's, and a Chrome trace of each method in it."""
    from gaussiank_lab.cluster.figures import save, scaling_figure, timeline_figure

    scenario, default = setting.scenario, DEFAULT_NAME
    known = {method.name for method in all_methods(density, accelerator=setting.accelerator)}
    rows = [row for row in predictions if row.workers == workers and row.method in known]  # no timeline of local steps
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
    for table in paper_tables(paper_rows()):
        console.print(table)
        console.print()
    console.print(VERDICT + "\n", highlight=False)
    _show_lines(console, "Assumed", (*ASSUMPTIONS, f"cluster and GPUs: gaussiank simulate --preset {PRESET}"))


def _show_origin(console: Console, setting: ScenarioSetting) -> None:
    _show_lines(console, "From", setting.sources)
    _show_lines(console, "Assumed", setting.assumed)


def _show_lines(console: Console, head: str, lines: Sequence[str]) -> None:
    console.print(f"{head}:", highlight=False)
    for line in lines:
        console.print(f"  - {line}", highlight=False)
