from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.each import each

from gaussiank_lab.bench.rows import RowWriter, read_rows


def test_rows_come_back_and_no_number_is_null(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "new") as writer:
        writer.write({"numel": 3, "seconds": 0.5})
        assert read_rows(tmp_path / "new") == [{"numel": 3, "seconds": 0.5}]  # before the file is closed
        writer.write({"numel": 4, "seconds": float("nan")})
    assert read_rows(tmp_path / "new") == writer.rows == [{"numel": 3, "seconds": 0.5}, {"numel": 4, "seconds": None}]


def test_rows_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(FileExistsError, match=f"^out must be a directory without rows, got {re.escape(str(tmp_path))}"):
        RowWriter(tmp_path).__enter__()
    assert (tmp_path / "rows.jsonl").read_text() == "{}\n"


def test_unfinished_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"a": 1}) + '\n{"a": ')
    assert read_rows(tmp_path) == [{"a": 1}]
    (tmp_path / "rows.jsonl").write_text("")
    assert read_rows(tmp_path) == []


@each("line", ["[1]", "no json", '"text"'])
def test_what_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{{}}\n{line}\n{{}}\n")
    with pytest.raises(ValueError, match=r"must hold one JSON object a line, got something else in line 2\.$"):
        read_rows(tmp_path)


def test_missing_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"^directory must hold rows\.jsonl, got .*\. Give a directory that bench"
    ):
        read_rows(tmp_path)
