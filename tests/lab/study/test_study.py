from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gaussiank_lab.study.study import VECTORS, read_study


def rewrite(study_dir: Path, change: Any) -> None:
    path = study_dir / "gradients.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in change(records)))


def test_missing(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"run directory must hold gradients\.jsonl, got .* without it"):
            read_study(place)


def test_cut_short(study_dir: Path) -> None:
    path = study_dir / "gradients.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    study = read_study(study_dir)
    assert study.truncated
    assert [sample.step for sample in study.samples] == [0, 3, 6, 9]


def test_another_version(study_dir: Path) -> None:
    rewrite(study_dir, lambda records: [{**records[0], "format": 3}, *records[1:]])
    with pytest.raises(ValueError, match=r"format must be 2, got 3 .*Read it with the gaussiank that wrote it \(0"):
        read_study(study_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: records[1:], "line 1 must be the opening of a study"),
        (lambda records: records[:1], "must hold a recorded step, got none"),
        (lambda records: [records[0], {"kind": "sample", "step": 1}], "must hold samples with step, density and grad"),
        (lambda records: [records[0], {"no": "kind"}], "line 2 must be a JSON object with a kind"),
    ],
)
def test_damaged(study_dir: Path, change: Any, message: str) -> None:
    rewrite(study_dir, change)
    with pytest.raises(ValueError, match=message):
        read_study(study_dir)


def test_the_first_format_is_still_read(study_dir: Path) -> None:
    """It had a record for each layer and vector."""
    new = read_study(study_dir)

    def older(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for sample, record in zip(new.samples, records[1:], strict=True):
            del record["tables"]
            for name in sample.layers:
                found = {vector: sample.layer(name, vector) for vector in VECTORS}
                record["layers"][name] |= {vector: sketch.as_record() for vector, sketch in found.items() if sketch}
        return [records[0] | {"format": 1}, *records[1:]]

    rewrite(study_dir, older)
    for sample, again in zip(new.samples, read_study(study_dir).samples, strict=True):
        assert again.layers == sample.layers != ()
        for name in sample.layers:
            for vector in sample.vectors:
                one, two = sample.layer(name, vector), again.layer(name, vector)
                assert one is not None
                assert two is not None
                assert (one.counts == two.counts).all()
                assert one.square_sum == pytest.approx(two.square_sum)
