"""The recipe for iteration time: predictions, and the place for measured rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gaussiank.lab.cluster.paper_table import METHODS, MODELS, paper_rows
from gaussiank.lab.cluster.tables import seconds_text
from gaussiank.lab.reproduce.recipes.iteration_time import ITERATION_TIME, MEASURED_NAME

ROW = {
    **{"kind": "step-time", "model": "resnet20", "method": "topk", "workers": 4, "network": "100 Mbit/s"},
    **{"step_s": 0.25, "efficiency": 0.8, "origin": "gaussiank train ..., some machine, 2026-11-25, abc"},
}


def test_predictions_are_those_of_the_papers_table(tmp_path: Path) -> None:
    outcome = ITERATION_TIME.conclude(tmp_path, "small")
    assert {row[0] for row in outcome.rows} == {"modelled"}
    cells = {row[1:3]: row[5] for row in outcome.rows}
    for row in paper_rows():
        assert {name: cells[row.model, name] for name in METHODS} == {
            name: seconds_text(seconds) for name, seconds in row.step_s.items()
        }
    assert outcome.verdict == "holds with limits"
    assert "No step was measured" in outcome.standins
    assert [drawing.name for drawing in outcome.drawings] == ["step-time", *(f"{model}-scaling" for model in MODELS)]


def test_measured_rows_stand_beside_them(tmp_path: Path) -> None:
    (tmp_path / MEASURED_NAME).write_text(json.dumps(ROW) + "\n")
    outcome = ITERATION_TIME.conclude(tmp_path, "tiny")
    expected = ("measured", "resnet20", "topk", "4", "100 Mbit/s", "250 ms", "80", ROW["origin"])
    assert outcome.rows[-1] == expected
    assert "No step was measured" not in outcome.standins


def test_a_measured_row_must_say_where_it_comes_from(tmp_path: Path) -> None:
    row = {key: value for key, value in ROW.items() if key != "origin"}
    (tmp_path / MEASURED_NAME).write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"line 1 must have model, .*, got no origin"):
        ITERATION_TIME.conclude(tmp_path, "tiny")
