"""Rows of measurements in long form: one JSON object a line, each of which tells all about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from gaussiank_lab.report.records import RecordWriter, finite

ROWS_NAME = "rows.jsonl"
Row = dict[str, Any]


class RowWriter:
    """Writes rows to ``OUT/rows.jsonl``; each is flushed, so that an interrupted run leaves all but nothing behind.

    Args:
        out: directory; created when the writer is entered.

    Raises:
        FileExistsError: it holds rows already.
    """

    def __init__(self, out: Path) -> None:
        self._lines = RecordWriter(out, name=ROWS_NAME)
        self.path = self._lines.path
        self.rows: list[Row] = []

    def __enter__(self) -> RowWriter:
        try:
            self._lines.__enter__()
        except FileExistsError:
            raise FileExistsError(
                f"out must be a directory without rows, got {self.path.parent}. Choose another one."
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.__exit__(kind, error, trace)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; a number that is not finite becomes null."""
        plain = finite(row)
        self.rows.append(plain)
        self._lines.write(plain)


def read_rows(out: Path) -> list[Row]:
    """Read the rows of a run.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a line is no JSON object; an unfinished last line is left out.
    """
    path = out / ROWS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"directory must hold {ROWS_NAME}, got {out}. Give a directory that bench has written.")
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if text and not text.endswith("\n"):
        lines = lines[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path} must hold one JSON object a line, got something else in line {number}.")
        rows.append(row)
    return rows
