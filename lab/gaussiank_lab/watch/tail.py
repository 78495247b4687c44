"""Follow the records of a run that is still being written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gaussiank_lab.records import RECORDS_NAME


class RecordTail:
    """Read what has been appended to ``RUN/records.jsonl`` since the last look.

    A resumed run has fewer records than before its end: then all are read again. A line that is not whole yet is left
    for the next look, and one that is no record is passed over.

    Args:
        run_dir: directory of the run; its records may not be there yet.

    Attributes:
        records: all read so far.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / RECORDS_NAME
        self._place = 0
        self._last = b""
        self.records: list[dict[str, Any]] = []

    def look(self) -> bool:
        """Read on; returns whether there was anything new."""
        try:
            with self._path.open("rb") as file:
                if not self._continues(file):
                    self._place, self._last, self.records = 0, b"", []
                file.seek(self._place)
                data = file.read()
        except FileNotFoundError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._place += len(whole)
        self._last = whole[-64:] or self._last
        found = list(_records(whole))
        self.records += found
        return bool(found)

    def _continues(self, file: Any) -> bool:
        """Tell whether the file still has, where reading ended, the bytes that were read last."""
        file.seek(self._place - len(self._last))
        return bool(file.read(len(self._last)) == self._last)


def _records(lines: bytes) -> Iterator[dict[str, Any]]:
    for line in lines.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("kind"), str):
            yield record
