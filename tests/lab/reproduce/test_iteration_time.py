"""The recipe for iteration time: predictions, and the place for measured rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gaussiank_lab.bench.rows import ROWS_NAME
from gaussiank_lab.cluster.simulate import METHODS, MODELS, paper_rows, seconds_text
from gaussiank_lab.reproduce.recipes.iteration_time import ITERATION_TIME, MEASURED

ROW = {
    **{"kind": "net", "model": "resnet20", "method": "topk", "workers": 4, "rate": "100mbit", "step_s": 0.25},
    **{"efficiency": 0.8, "machine": "some processor", "cores": 2, "date": "2026-11-25T01:02:03", "commit": "abc"},
}


def write(out: Path, *rows: object) -> None:
    (out / MEASURED).mkdir()
    (out / MEASURED / ROWS_NAME).write_text("".join(json.dumps(row) + "\n" for row in rows))


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
    write(tmp_path, ROW, {**ROW, "efficiency": None}, {"kind": "other"})
    outcome = ITERATION_TIME.conclude(tmp_path, "tiny")
    origin = "some processor, 2 cores, 2026-11-25, abc"
    assert outcome.rows[-2] == ("measured", "resnet20", "topk", "4", "100mbit", "250 ms", "80", origin)
    assert outcome.rows[-1][-2] == "–"
    assert "No step was measured" not in outcome.standins


def test_a_measured_row_must_say_where_it_comes_from(tmp_path: Path) -> None:
    write(tmp_path, {key: value for key, value in ROW.items() if key != "commit"})
    with pytest.raises(ValueError, match="must hold rows of gaussiank bench net, got no commit in row 1"):
        ITERATION_TIME.conclude(tmp_path, "tiny")
