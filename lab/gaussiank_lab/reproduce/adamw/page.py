"""What the rows say: a table of every line at its best learning rate, and nats above dense against what is sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gaussiank_lab.outputs import write_whole
from gaussiank_lab.report.plots import figure_svg
from gaussiank_lab.reproduce.adamw.setting import StudySetting
from gaussiank_lab.reproduce.adamw.study import Row, read_rows
from gaussiank_lab.reproduce.drawing import Curve, band_figure
from gaussiank_lab.reproduce.pages import compact
from gaussiank_lab.study.report import standalone

_OF_GROUP = ("model", "workers", "batch", "steps")


@dataclass(frozen=True)
class Line:
    """One method with its settings, at the best learning rate that was tried.

    Attributes:
        row: of one seed at that rate.
        nats: seed -> nats at that rate.
        rates: all that were tried, those that diverged among them.
        above: mean nats above dense AdamW with the same model, batch, workers, steps and seeds, at its best learning
            rate; None without one.
    """

    row: Row
    nats: dict[int, float]
    rates: tuple[float, ...]
    above: float | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.nats.values())))

    @property
    def text(self) -> str:
        """Its settings without those of its group."""
        return " ".join(part for part in setting_of(self.row).line.split() if part.split("=")[0] not in _OF_GROUP)


def setting_of(row: Row) -> StudySetting:
    """Return the setting that a row is of."""
    return StudySetting(**{name: row[name] for name in StudySetting.__dataclass_fields__ if name in row})


def summarise(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Line]]:
    """Return the lines of each group of rows that share model, workers, batch and steps; what diverged has none.

    A learning rate counts by its mean over seeds; a rate that has fewer seeds than another does not beat it.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        group = tuple(row[name] for name in _OF_GROUP)
        groups.setdefault(group, {}).setdefault(setting_of(row).line, []).append(row)
    return {group: _lines(lines) for group, lines in groups.items()}


def _lines(grouped: Mapping[str, Sequence[Row]]) -> list[Line]:
    dense = [seeds for rows in grouped.values() if rows[0]["method"] == "dense" for seeds in _by_rate(rows).values()]
    found = []
    for rows in grouped.values():
        rates = {rate: seeds for rate, seeds in _by_rate(rows).items() if None not in seeds.values()}
        if not rates:
            continue
        most = max(map(len, rates.values()))
        means = {rate: _mean(seeds) for rate, seeds in rates.items() if len(seeds) == most}
        best = min(means, key=means.__getitem__)
        seeds = rates[best].keys()
        same = [_mean({seed: one[seed] for seed in seeds}) for one in dense if seeds <= one.keys()]
        above = means[best] - min(same) if same else None
        row = next(row for row in rows if row["lr"] == best)
        found.append(Line(row, rates[best], tuple(sorted({row["lr"] for row in rows})), above))
    return found


def _by_rate(rows: Iterable[Row]) -> dict[float, dict[int, float]]:
    rates: dict[float, dict[int, float]] = {}
    for row in rows:
        rates.setdefault(row["lr"], {})[row["seed"]] = row["nats"]
    return rates


def _mean(seeds: Mapping[int, float]) -> float:
    return float(np.mean(list(seeds.values())))


def table(lines: Sequence[Line]) -> str:
    """Write the lines of a group as a table in Markdown, the fewest bits last."""
    parts = [
        "| line | bits | bits of sums | messages | nats | above dense | seeds | learning rate | tried |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in sorted(lines, key=lambda line: (-line.row["bits"], line.mean)):
        row = line.row
        above = "–" if line.above is None else f"{line.above:+.3f}"
        tried = ", ".join(f"{rate:g}" for rate in line.rates)
        sums = f"{row['sum_bits']:.2f}" if row["sum_bits"] else "–"
        parts.append(
            f"| `{line.text}` | {row['bits']:.4g} | {sums} | {row['messages']:,} | {line.mean:.3f} | {above} | "
            f"{len(line.nats)} | {row['lr']:g} | {tried} |"
        )
    return "\n".join(parts)


def _all_bits(row: Row) -> float:
    return float(row["bits"] + row["sum_bits"])


def _sparse(row: Row) -> bool:
    return bool(row["method"] == "sparse" and not row["frozen"])


FAMILIES: dict[str, Callable[[Row], bool]] = {
    "Top_k, beta1 0.9": lambda row: _sparse(row) and not row["precondition"] and row["beta1"] == 0.9,
    "Top_k, beta1 0": lambda row: _sparse(row) and not row["precondition"] and row["beta1"] == 0,
    "AdamRows": lambda row: _sparse(row) and row["precondition"] == "row" and row.get("sums") == "8bit",
    "local steps, sparse": lambda row: row["method"] == "local" and not row["wire"].startswith("dense"),
    "DiLoCo": lambda row: row["method"] == "local" and row["wire"].startswith("dense"),
    "PowerSGD": lambda row: row["method"] == "powersgd",
    "DeMo": lambda row: row["method"] == "demo",
}
"""Name of a curve -> what belongs to it, as the library sends it. A curve has the best line at each place."""

Place = Callable[[Row], float]
PLACES: dict[str, tuple[str, Place]] = {
    "bits": ("bits a parameter and inner step, moments included", _all_bits),
    "visits": ("density x exchanges: how often an entry is sent", lambda row: float(row["density"] * row["messages"])),
    "messages": ("messages", lambda row: float(row["messages"])),
}
"""Name of a figure -> label of its x axis, and where a row stands on it."""
CLOSE = 3
"""Factor between places at which a family has a point each; of what lies closer the best line is drawn."""


def figure(lines: Sequence[Line], name: str) -> Figure:
    """Draw nats above dense AdamW against one of ``PLACES``: for each family the best of the lines that lie close."""
    label, place = PLACES[name]
    curves: dict[str, Curve] = {}
    for family, belongs in FAMILIES.items():
        best: dict[int, Line] = {}
        for line in lines:
            if line.above is not None and belongs(line.row):
                at = round(math.log(place(line.row), CLOSE))
                if at not in best or line.mean < best[at].mean:
                    best[at] = line
        if best:
            chosen = sorted(best.values(), key=lambda line: place(line.row))
            curves[family] = np.array([place(line.row) for line in chosen]), [_above(chosen)]
    return band_figure(curves, label, "nats a byte above dense AdamW", log_x="")


def _above(lines: Sequence[Line]) -> np.ndarray:
    return np.array([line.above for line in lines])


_INTRODUCTION = """# AdamW under sparsity: every row

Simulated workers in one process, with the library's own compressors, residuals, wires and schedules. Each line stands
at the best learning rate that was tried; `above dense` is the difference from dense AdamW with the same model, batch,
steps and seeds, at its best learning rate. Settings that a line does not name are the defaults of `StudySetting` in
`lab/gaussiank_lab/reproduce/adamw/setting.py`: betas (0.9, 0.999), scope bucket, wire rice+2bit, no clipping. Bits are
those of real payloads, one way; the sums of a preconditioner (float32) stand apart, because narrow models overstate
them. The text is the source of Python's standard library, by bytes. With one seed, differences below some 0.03 nats
mean nothing.

    gaussiank reproduce sparse-adamw local-steps

"""


def write_page(path: Path) -> Path:
    """Write ``README.md`` with tables, and the figures, beside a file of rows.

    Args:
        path: of the rows.

    Returns:
        The page.
    """
    rows = list(read_rows(path).values())
    parts = []
    for group, lines in sorted(summarise(rows).items(), key=lambda item: -len(item[1])):
        model, workers, batch, steps = group
        numel = lines[0].row["numel"] if lines else 0
        parts.append(f"## {model}: {numel:,} parameters, {workers} workers, batch {batch} each, {steps:,} steps")
        if len(lines) >= 5:
            for name, (label, _) in PLACES.items():
                file = f"{model}-{workers}-{batch}-{steps}-{name}.svg"
                drawn = standalone(figure_svg(figure(lines, name)))
                write_whole(path.parent / file, compact(drawn).encode())
                parts.append(f"![nats above dense against {label}]({file})")
        parts.append(table(lines))
    dates = sorted({row["date"][:10] for row in rows})
    commits = list(dict.fromkeys(row["commit"] for row in rows))
    machines = ", ".join(sorted({row["machine"] for row in rows}))
    origin = f"{len(rows)} rows, {' to '.join(dates)}, commits {', '.join(map(str, commits))}, {machines}."
    return write_whole(path.parent / "README.md", (_INTRODUCTION + "\n\n".join([*parts, origin]) + "\n").encode())
