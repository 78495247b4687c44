"""The records of one training run: written line by line while it runs, read back by plots, summary and report."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from gaussiank.durable import naming, write_whole
from gaussiank_lab.metric import Metric

FORMAT = 1
RECORDS_NAME = "records.jsonl"
STEP_TIMES = {"step_s": "step", "compute_s": "compute", "select_s": "select", "communicate_s": "comm"}
"""Times in a step's record -> their headings in the summary. A method's closing record has their medians."""
STEP_NUMBERS = ("loss", "kept", "sent_bytes", "dense_bytes", *STEP_TIMES)
"""What is measured on every worker at every step, and averaged over workers."""


class RecordWriter:
    """Writes the records of a run to ``RUN/records.jsonl`` or another file there, one JSON object a line.

    Every line is flushed, so a killed run leaves all but its last record readable. JSON has no NaN and no infinity:
    both are written as null, which readers take for a missing number.

    Args:
        run_dir: Directory of the run; created when the writer is entered.
        name: Name of the file.
        begin: What the file holds from then on, in place of what it held: records of a run that goes on. Without it,
            there must be no file.

    Attributes:
        size_bytes: Of what is written.
        crc32: Of those bytes.

    Example:
        >>> import tempfile
        >>> run_dir = tempfile.mkdtemp()
        >>> with RecordWriter(run_dir) as writer:
        ...     writer.write({"kind": "run", "format": 1})
        ...     writer.write({"kind": "step", "method": "topk", "step": 1, "loss": float("nan")})
        >>> read_records(run_dir).columns("topk", "step", "loss")
        (array([1.]), array([nan]))
    """

    def __init__(self, run_dir: str | Path, begin: bytes | None = None, name: str = RECORDS_NAME) -> None:
        self.path = Path(run_dir) / name
        self._begin = begin
        self._file: TextIO | None = None
        self.size_bytes = 0
        self.crc32 = 0

    def __enter__(self) -> RecordWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._begin is not None:
            write_whole(self.path, self._begin)
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
            self._note(self._begin)
            return self
        try:
            self._file = self.path.open("x", encoding="utf-8", newline="\n")
        except FileExistsError:
            raise FileExistsError(
                f"run directory must hold no records yet, got {self.path}. Choose another, or delete this file."
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with naming(self.path):
                file.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush it.

        Args:
            record: JSON values under string keys; ``"kind"`` says which record it is. Not modified.

        Raises:
            RuntimeError: The writer is not open.
            TypeError: A value has no JSON form.
        """
        if self._file is None:
            raise RuntimeError("RecordWriter must be open to write, got a closed one. Write inside its with block.")
        try:
            line = json.dumps(record, allow_nan=False) + "\n"
        except ValueError:  # rare, and looking for it first takes longer than the rest
            line = json.dumps(finite(record), allow_nan=False) + "\n"
        with naming(self.path):
            self._file.write(line)
            self._file.flush()
        self._note(line.encode())

    def sync(self) -> tuple[int, int]:
        """Make sure that all records are on disk; returns their bytes and the CRC-32 of these.

        Raises:
            RuntimeError: The writer is not open.
        """
        if self._file is None:
            raise RuntimeError("RecordWriter must be open to sync, got a closed one. Sync inside its with block.")
        with naming(self.path):
            os.fsync(self._file.fileno())
        return self.size_bytes, self.crc32

    def _note(self, data: bytes) -> None:
        self.size_bytes += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)


@dataclass(frozen=True)
class Records:
    """What one run wrote, sorted by kind and otherwise as it stands in the file.

    Attributes:
        path: The file that was read.
        run: The run record: configuration as it was in the end, machine, versions.
        steps: Step records, in the order written.
        evals: Evaluation records, in the order written.
        methods: One record for every method that finished.
        rounds: One record for every round of local steps, of rank 0.
        truncated: Whether the last line was cut short, as a killed run leaves it; that line is not in the lists.
        runs: Of several runs read as one, the path of each by its short name.
    """

    path: Path
    run: dict[str, Any]
    steps: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    methods: list[dict[str, Any]]
    rounds: list[dict[str, Any]] = field(default_factory=list, kw_only=True)
    truncated: bool = False
    runs: dict[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """What the run is judged by: accuracy, where the run record does not say."""
        return Metric.from_record(self.run.get("metric"))

    @property
    def names(self) -> tuple[str, ...]:
        """Methods that left any record, in the order they ran."""
        return tuple(dict.fromkeys(record["method"] for record in (*self.steps, *self.evals, *self.methods)))

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Methods that were asked for or started, but have no final record."""
        config = self.run.get("config")
        asked = config.get("methods") if isinstance(config, dict) else None
        asked = [name for name in asked if isinstance(name, str)] if isinstance(asked, list) else []
        finished = {record["method"] for record in self.methods}
        return tuple(name for name in dict.fromkeys((*asked, *self.names)) if name not in finished)

    def columns(
        self, method: str, *keys: str, kind: Literal["step", "eval", "round"] = "step"
    ) -> tuple[NDArray[np.float64], ...]:
        """Return one array for each key, over the records of one method.

        Args:
            method: Name as in ``names``; an unknown one gives empty arrays.
            *keys: Keys of the records, such as ``"step"`` and ``"loss"``.
            kind: Whether to read records of steps, evaluations or rounds.

        Returns:
            Arrays of one length, float64. A value that is missing, null or no finite number is NaN.
        """
        chosen = {"step": self.steps, "eval": self.evals, "round": self.rounds}[kind]
        records = [r for r in chosen if r["method"] == method]
        return tuple(np.array([number(record, key) for record in records], dtype=np.float64) for key in keys)

    def diverged(self, method: str) -> bool:
        """Tell whether any loss of this method was not finite."""
        records = (r for r in (*self.steps, *self.evals, *self.methods) if r["method"] == method)
        return any("loss" in record and not math.isfinite(number(record, "loss")) for record in records)


def number(record: Mapping[str, Any], key: str) -> float:
    """Return ``record[key]`` as a float, NaN when it is missing, null or no finite number."""
    value = record.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return math.nan


def read_records(run_dir: str | Path) -> Records:
    """Read ``RUN/records.jsonl``.

    Keys and kinds that this release does not know are accepted; the former are kept, the latter left out.

    Args:
        run_dir: Directory that a run has written.

    Returns:
        The records. A last line that was cut short is left out and noted in ``truncated``.

    Raises:
        FileNotFoundError: The directory holds no records.
        ValueError: A line is not a record, the first is not a run record, or the format is another.
    """
    path = Path(run_dir) / RECORDS_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"run directory must hold {RECORDS_NAME}, got {path}, which does not exist. "
            "Pass a directory that gaussiank train has written."
        ) from None
    records, truncated = parse_lines(path, data)
    run = _with_changes(_run_record(path, records), records)
    found: dict[str, list[dict[str, Any]]] = {"step": [], "eval": [], "method": [], "round": []}
    for index, record in _after_first(path, records):
        if record["kind"] in found:
            if not isinstance(record.get("method"), str):
                raise _bad_line(path, index, "name its method", repr(record.get("method")))
            found[record["kind"]].append(record)
    return Records(path, run, found["step"], found["eval"], found["method"], truncated, rounds=found["round"])


def parse_lines(path: Path, data: bytes) -> tuple[list[dict[str, Any]], bool]:
    """Read JSON objects that each have a kind, one a line.

    Args:
        path: Where they come from, for the messages.
        data: What the file holds.

    Returns:
        The records, and whether a last line was cut short; that line is left out.

    Raises:
        ValueError: A line is not a record.
    """
    lines = data.split(b"\n")
    tail = lines.pop()  # empty when the last line is complete
    records = [_parse(path, index, line) for index, line in enumerate(lines, 1)]
    if tail:
        try:
            records.append(_parse(path, len(lines) + 1, tail))
        except ValueError:
            return records, True
    return records, False


def written_before(path: Path, size_bytes: int, crc32: int) -> bytes:
    """Return the first bytes of a file, as many as it had at a checkpoint; none when it is gone.

    Raises:
        ValueError: They are not what they were.
    """
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        data = file.read(size_bytes)
    if zlib.crc32(data) != crc32:
        raise ValueError(
            f"{path} must begin with the {size_bytes} bytes that it had at the checkpoint, got others. "
            "Restore the file, or move it away to go on without what was recorded."
        )
    return data


def finite(value: Any) -> Any:
    """Return a JSON value in which null stands for every number that JSON cannot write."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _parse(path: Path, index: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise _bad_line(path, index, "be a JSON object with a kind", repr(line[:40].decode("utf-8", "replace")))
    return record


def _run_record(path: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    if not records or records[0]["kind"] != "run":
        raise _bad_line(path, 1, "be a run record", f"kind {records[0]['kind']!r}" if records else "nothing")
    run = records[0]
    if run.get("format") != FORMAT:
        raise ValueError(
            f"format must be {FORMAT}, got {run.get('format')!r} in {path} line 1. "
            f"Read this run with the gaussiank that wrote it ({run.get('gaussiank', 'unknown version')})."
        )
    return run


def _with_changes(run: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the run record with the settings that a resume has changed, its length for example."""
    config = run.get("config")
    changes = [record["config"] for record in records if record["kind"] == "resume" and "config" in record]
    if not isinstance(config, dict) or not all(isinstance(change, dict) for change in changes):
        return run
    for change in changes:
        config = {**config, **change}
    return {**run, "config": config}


def _after_first(path: Path, records: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, record in enumerate(records[1:], 2):
        if record["kind"] == "run":
            raise _bad_line(path, index, "be no second run record", "kind 'run'")
        yield index, record


def _bad_line(path: Path, index: int, rule: str, got: str) -> ValueError:
    return ValueError(f"{path} line {index} must {rule}, got {got}. Delete the line or run the training again.")
