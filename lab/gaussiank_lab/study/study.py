"""What a recorder wrote, read back: the run, and its samples with their sketches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gaussiank_lab.report.records import number, parse_lines
from gaussiank_lab.study.sketch import Sketch, layer_sketch

FORMAT = 2
"""1 had a record for each layer and vector; it is still read."""
STUDY_NAME = "gradients.jsonl"
VECTORS = ("grad", "residual", "accumulated")
"""Names of g, e and u in records."""


@dataclass(frozen=True)
class StudySample:
    """One recorded step.

    Attributes:
        record: the JSON record.
    """

    record: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of the step, 0 the first."""
        return int(self.record["step"])

    @property
    def density(self) -> float:
        """Density that was asked for."""
        return float(self.record["density"])

    @cached_property
    def vectors(self) -> dict[str, Sketch]:
        """Sketch of the whole model's g, and of e and u where there were any."""
        return {name: Sketch.from_record(self.record["vectors"][name]) for name in VECTORS if name in self._vectors}

    @property
    def selected(self) -> str:
        """Name of the vector that is selected from: u where there is one, else g."""
        return "accumulated" if "accumulated" in self._vectors else "grad"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that were recorded."""
        return tuple(self.record.get("layers", ()))

    def layer(self, name: str, vector: str) -> Sketch | None:
        """Return the sketch of one layer, or None where it was not recorded."""
        alone = self.record.get("layers", {}).get(name, {}).get(vector)
        if alone is not None:
            return Sketch.from_record(alone)
        table, row = self._rows.get(name, ({}, 0))
        return layer_sketch(table[vector], row) if vector in table else None

    @cached_property
    def _rows(self) -> dict[str, tuple[dict[str, Any], int]]:
        """Layer -> the table that it is in, and its row."""
        tables = self.record.get("tables", ())
        return {name: (table, row) for table in tables for row, name in enumerate(table["names"])}

    def value(self, key: str) -> float:
        """Return a number of the record, NaN where it is missing."""
        return number(self.record, key)

    @property
    def _vectors(self) -> dict[str, Any]:
        vectors: dict[str, Any] = self.record["vectors"]
        return vectors


@dataclass(frozen=True)
class Study:
    """A recorded run.

    Attributes:
        path: the file that was read.
        run: how it was made.
        samples: the recorded steps, in order.
        truncated: whether the last line was cut short, as a killed run leaves it.
    """

    path: Path
    run: dict[str, Any]
    samples: list[StudySample]
    truncated: bool

    @property
    def numel(self) -> int:
        """Entries of the model."""
        return sum(self.run["layers"].values())

    @property
    def compressor(self) -> str:
        """What selected in this run; "none" when nothing did."""
        return str(self.run.get("compression", {}).get("compressor", "none"))


def read_study(run_dir: str | Path) -> Study:
    """Read ``RUN/gradients.jsonl``.

    Args:
        run_dir: directory that a recorder has written.

    Raises:
        FileNotFoundError: no study is there.
        ValueError: a line is damaged, the format is another, or no step was recorded.
    """
    path = Path(run_dir) / STUDY_NAME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        below = ", ".join(str(found.parent) for found in sorted(Path(run_dir).glob(f"*/{STUDY_NAME}")))
        remedy = f"Give one of {below}" if below else "Record with gaussiank train --record 50 or Recorder"
        raise FileNotFoundError(f"run directory must hold {STUDY_NAME}, got {run_dir} without it. {remedy}.") from None
    records, truncated = parse_lines(path, data)
    if not records or records[0]["kind"] != "study" or not isinstance(records[0].get("layers"), dict):
        raise ValueError(f"{path} line 1 must be the opening of a study, got something else. Record the run again.")
    run = records[0]
    if run.get("format") not in (1, FORMAT):
        raise ValueError(
            f"format must be {FORMAT}, got {run.get('format')!r} in {path}. "
            f"Read it with the gaussiank that wrote it ({run.get('gaussiank', 'unknown version')})."
        )
    samples = [StudySample(record) for record in records[1:] if record["kind"] == "sample"]
    for sample in samples:
        if not {"step", "density", "vectors"} <= sample.record.keys() or "grad" not in sample.record["vectors"]:
            raise ValueError(f"{path} must hold samples with step, density and grad, got one without. Record it again.")
    if not samples:
        raise ValueError(f"{path} must hold a recorded step, got none. Train for longer, or lower `every`.")
    return Study(path, run, samples, truncated)
