"""What a study found, in numbers and words: the verdicts on the paper's assumptions, and a row for each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rich.table import Table

from gaussiank_lab.report.summary import UNDERLINED
from gaussiank_lab.study.fit import FittedShape, best_fit, shape_of
from gaussiank_lab.study.sketch import Sketch
from gaussiank_lab.study.study import Study, StudySample
from gaussiank_lab.theory import BOUNDS

LEAST_ENTRIES = 1000
"""Smaller layers are left out of the counts: their shape is noise."""


class Tally(NamedTuple):
    """One bound, counted over vectors.

    Attributes:
        bound: its name.
        vectors: vectors looked at.
        premise: those that fulfil its condition.
        kept: those that keep the bound.
        broken_with_premise: those that fulfil the condition and break the bound; a theorem says none.
    """

    bound: str
    vectors: int
    premise: int
    kept: int
    broken_with_premise: int


@dataclass(frozen=True)
class LayerRow:
    """One layer at the last sample."""

    name: str
    numel: int
    zeros: float
    kurtosis: float
    law: str
    distance: float
    bell: bool
    kept_over_k: float
    contraction: float


def whole_vectors(study: Study) -> Iterator[tuple[StudySample, Sketch]]:
    """Yield every sample with the sketch that its selection saw."""
    for sample in study.samples:
        yield sample, sample.vectors[sample.selected]


def layer_vectors(study: Study) -> Iterator[tuple[StudySample, Sketch]]:
    """Yield every layer of every sample, those of at least ``LEAST_ENTRIES`` entries."""
    for sample in study.samples:
        for name in sample.layers:
            sketch = sample.layer(name, sample.selected)
            if sketch is not None and sketch.numel >= LEAST_ENTRIES:
                yield sample, sketch


def asked_density(sample: StudySample) -> float:
    """Return the density to judge a sample at: what was asked for, or 0.001 where everything was sent."""
    return sample.density if sample.density < 1 else 0.001


def shapes(vectors: Iterator[tuple[StudySample, Sketch]]) -> list[FittedShape]:
    """Judge vectors, those of zeros left out."""
    return [shape_of(sketch, asked_density(sample)) for sample, sketch in vectors if sketch.square_sum > 0]


def tallies(judged: list[FittedShape]) -> list[Tally]:
    """Count for each bound how often its condition and it itself held."""
    rows = []
    for name in BOUNDS:
        verdicts = [shape.verdicts[name] for shape in judged]
        rows.append(
            Tally(
                bound=name,
                vectors=len(verdicts),
                premise=sum(verdict.premise for verdict in verdicts),
                kept=sum(verdict.holds for verdict in verdicts),
                broken_with_premise=sum(verdict.premise and not verdict.holds for verdict in verdicts),
            )
        )
    return rows


def layer_rows(study: Study) -> list[LayerRow]:
    """Describe every layer at the last sample, in the model's order."""
    rows = []
    sample = study.samples[-1]
    density = asked_density(sample)
    for name in study.run["layers"]:
        sketch = sample.layer(name, sample.selected)
        if sketch is None:
            continue
        fit = best_fit(sketch)
        layer = sample.record["layers"][name]
        sent, energy = layer.get("sent_energy"), sketch.square_sum
        rows.append(
            LayerRow(
                name=name,
                numel=sketch.numel + sketch.nonfinite,
                zeros=sketch.zeros / max(1, sketch.numel),
                kurtosis=sketch.kurtosis,
                law=fit.name if fit else "–",
                distance=fit.distance if fit else math.nan,
                bell=shape_of(sketch, density).bell,
                kept_over_k=layer["kept"] / (density * sketch.numel) if "kept" in layer and sketch.numel else math.nan,
                contraction=math.nan if sent is None or not energy else max(0.0, 1 - sent / energy),
            )
        )
    return rows


def headline(study: Study) -> str:
    """Say in one sentence what the vectors look like."""
    judged = shapes(whole_vectors(study))
    vector = {"accumulated": "The accumulated gradient", "grad": "The gradient"}[study.samples[-1].selected]
    if not judged:
        return f"{vector} was zero in every sample."
    last = best_fit(study.samples[-1].vectors[study.samples[-1].selected])
    bells = sum(shape.bell for shape in judged)
    law = f"; at the end the nearest law is {law_name(last.name)} (distance {last.distance:.2f})" if last else ""
    squared = {row.bound: row for row in tallies(judged)}["squared"]
    return (
        f"{vector} is a bell in {bells} of {len(judged)} samples{law}; "
        f"the squared bound is kept in {squared.kept} of {squared.vectors}."
    )


def law_name(key: str) -> str:
    """Write a law's key as a reader says it."""
    return {"student_t": "Student's t", "generalised_gaussian": "gen. Gaussian", "laplace": "Laplace"}.get(key, key)


def bounds_table(study: Study) -> Table:
    """Build the table of bounds for the terminal."""
    table = Table(box=UNDERLINED, show_edge=False, padding=0, header_style="bold")
    for header in ("vectors", "bound", "looked at", "condition\nholds", "bound\nholds", "broken with\ncondition"):
        table.add_column(header, justify="left" if header in ("vectors", "bound") else "right")
    for kind, vectors in (("whole model", whole_vectors), ("layers", layer_vectors)):
        for row in tallies(shapes(vectors(study))):
            if row.vectors:
                table.add_row(kind, row.bound, *(f"{count}" for count in row[1:]))
    return table
