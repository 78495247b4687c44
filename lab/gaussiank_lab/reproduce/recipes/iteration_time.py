"""Iteration time and scaling efficiency: modelled, and measured where the network lab has rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gaussiank_lab.bench.rows import Row, read_rows
from gaussiank_lab.cluster.figures import COLORS, canvas, scaling_figure
from gaussiank_lab.cluster.scenario import of_preset
from gaussiank_lab.cluster.simulate import (
    ASSUMPTIONS,
    DENSITY,
    HEADLINE,
    METHODS,
    MODELS,
    PRESET,
    WORKERS,
    seconds_text,
)
from gaussiank_lab.reproduce.recipe import ClaimOutcome, Drawing, Recipe, Scale, judge
from gaussiank_lab.sim import Prediction, predict

COUNTS = (1, 2, 4, 8, 16)
STEPS = {"tiny": 1, "small": 20, "full": 20}
MEASURED = "network-lab"
"""Directory below the results to which ``gaussiank bench net --out`` writes what it measures on real links."""
_KEYS = ("model", "method", "workers", "rate", "step_s", "efficiency", "machine", "cores", "date", "commit")
_MARKERS = "osD^vPX"


def conclude(out: Path, scale: Scale) -> ClaimOutcome:
    """Predict steps of the paper's four models on its cluster, beside what was measured anywhere."""
    predictions = {model: _predict(model, STEPS[scale]) for model in MODELS}
    last = {model: {row.method: row for row in rows if row.workers == WORKERS} for model, rows in predictions.items()}
    gains = {name: {model: _gain(rows, name) for model, rows in last.items()} for name in HEADLINE}
    best = {name: max(found.values()) for name, found in gains.items()}
    near = [abs(best[name] / said - 1) <= 0.2 for name, said in HEADLINE.items()]
    verdict = judge(holds=all(near), partly=min(best.values()) > 1)
    because = (
        "Modelled, the published Gaussian_k is at most "
        + ", ".join(f"{best[name]:.2f} times as fast as {name} (paper: {said})" for name, said in HEADLINE.items())
        + f". At {WORKERS} workers it scales to "
        + ", ".join(f"{100 * rows['GaussianK'].efficiency:.0f} % on {model}" for model, rows in last.items())
        + "; dense to "
        + ", ".join(f"{100 * rows['Dense'].efficiency:.0f} %" for rows in last.values())
        + "."
    )
    table: list[tuple[str, ...]] = [
        ("modelled", model, name, f"{WORKERS}", PRESET, seconds_text(row.step_s), f"{100 * row.efficiency:.0f}", "–")
        for model, rows in last.items()
        for name, row in rows.items()
    ]
    measured = measured_rows(out / MEASURED)
    table += [_cells(row) for row in measured]
    caption = f"Modelled time of a step with {WORKERS} workers on {PRESET}, density {DENSITY:g}, batch 128 a worker."
    drawings = [Drawing("step-time", step_figure(last), caption)]
    for model, rows in predictions.items():
        caption = f"{model}: modelled scaling efficiency on {PRESET}: time of a worker alone over time of a step."
        drawings.append(Drawing(f"{model}-scaling", scaling_figure(rows, list(METHODS)), caption))
    ask = f"`gaussiank bench net --methods alone,ddp,topk --out OUT/{MEASURED}`"
    standin = "" if measured else f"No step was measured here: rows that {ask} writes would stand in the table. "
    standin += (
        f"The cost model stands in for 16 GPUs (`gaussiank simulate --preset {PRESET}`), fitted to nothing of the "
    )
    standin += f"paper. Assumed: {'; '.join(ASSUMPTIONS)}."
    header = ("kind", "model", "method", "workers", "network", "step", "efficiency, %", "origin")
    return ClaimOutcome(verdict, because, header, tuple(table), tuple(drawings), standin)


def measured_rows(place: Path) -> list[Row]:
    """Read rows of the network lab; none where it has not written.

    Raises:
        ValueError: a row lacks a key, or the file is damaged.
    """
    if not place.is_dir():
        return []
    rows = [row for row in read_rows(place) if row.get("kind") == "net"]
    for number, row in enumerate(rows, 1):
        missing = [key for key in _KEYS if key not in row]
        if missing:
            raise ValueError(f"{place} must hold rows of gaussiank bench net, got no {missing[0]} in row {number}.")
    return rows


def step_figure(found: dict[str, dict[str, Prediction]]) -> Figure:
    """Draw a line of markers for each model: one marker a method, at the time of its step."""
    figure, axes = canvas("time of a step (s)", "")
    methods = list(dict.fromkeys(name for rows in found.values() for name in rows))
    places = -np.arange(len(found), dtype=float)
    for number, name in enumerate(methods):
        times = [rows[name].step_s for rows in found.values()]
        lift = 0.09 * ((len(methods) - 1) / 2 - number)  # equal times stay apart
        axes.plot(times, places + lift, _MARKERS[number], color=COLORS[number], ms=6, linestyle="none", label=name)
    axes.set_yticks(places, list(found))
    axes.set_xscale("log")
    axes.set_ylim(-len(found) + 0.4, 0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _predict(model: str, steps: int) -> list[Prediction]:
    named = predict(of_preset(PRESET, model).scenario, list(METHODS.values()), COUNTS, steps=steps)
    names = {method.name: name for name, method in METHODS.items()}
    return [replace(row, method=names[row.method]) for row in named]


def _gain(rows: dict[str, Prediction], other: str) -> float:
    return rows[other].step_s / rows["GaussianK"].step_s


def _cells(row: Row) -> tuple[str, ...]:
    efficiency = "–" if row["efficiency"] is None else f"{100 * float(row['efficiency']):.0f}"
    words = [str(row[key]) for key in ("model", "method", "workers", "rate")]
    origin = f"{row['machine']}, {row['cores']} cores, {str(row['date'])[:10]}, {row['commit']}"
    return "measured", *words, seconds_text(float(row["step_s"])), efficiency, origin


ITERATION_TIME = Recipe(
    name="iteration-time",
    title="Iteration time and scaling efficiency",
    claim="On 16 GPUs and 10 Gb/s Ethernet GaussianK-SGD is up to 2.33, 3.63 and 1.51 times as fast as Dense-SGD, "
    "TopK-SGD and DGC-SGD, and scales better.",
    criterion="Holds if the largest modelled gain over each of the three is within 20 % of the paper's; with limits if "
    "there is a gain over each. (The cost model's times were known when this was written.) A measured row decides "
    "nothing: no cluster of 16 GPUs was at hand.",
    conclude=conclude,
)
