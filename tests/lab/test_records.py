import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.each import each

from gaussiank_lab.report.records import RecordWriter, number, read_records

WriteRun = Callable[..., Path]
RUN = {"kind": "run", "format": 1, "gaussiank": "0.1.0"}


def write_lines(run_dir: Path, *lines: object, end: str = "\n") -> Path:
    run_dir.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (run_dir / "records.jsonl").write_text("\n".join(texts) + end, encoding="utf-8")
    return run_dir


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    step = {"kind": "step", "method": "topk", "step": 1, "loss": 2.5, "later": {"key": [1, None]}}
    evaluation = {"kind": "eval", "method": "topk", "step": 1, "accuracy": 0.5}
    method = {"kind": "method", "method": "topk", "accuracy": 0.5}
    with RecordWriter(tmp_path / "deep" / "run") as writer:
        for record in (RUN, step, evaluation, {"kind": "note", "text": "from a later release"}, method):
            writer.write(record)
    records = read_records(tmp_path / "deep" / "run")
    assert records.run == RUN
    assert (records.steps, records.evals, records.methods) == ([step], [evaluation], [method])
    assert records.names == ("topk",)
    assert not records.truncated


def test_a_resumes_changes_of_settings_are_the_runs(tmp_path: Path) -> None:
    resumed = {"kind": "resume", "method": "topk", "step": 5, "workers": 2}
    changed = {**resumed, "config": {"steps": 9, "epochs": 3}}
    run_dir = write_lines(tmp_path / "run", {**RUN, "config": {"lr": 0.1, "steps": 5}}, resumed, changed)
    assert read_records(run_dir).run["config"] == {"lr": 0.1, "steps": 9, "epochs": 3}


def test_every_line_is_on_disk_before_the_writer_closes(tmp_path: Path) -> None:
    with RecordWriter(tmp_path) as writer:
        writer.write(RUN)
        assert read_records(tmp_path).run == RUN


def test_numbers_that_are_not_finite_become_null_at_any_depth(tmp_path: Path) -> None:
    record = {"kind": "step", "method": "m", "loss": math.nan, "deep": [{"x": math.inf}, (-math.inf, 1.5)]}
    with RecordWriter(tmp_path) as writer:
        writer.write(RUN)
        writer.write(record)
    assert read_records(tmp_path).steps == [
        {"kind": "step", "method": "m", "loss": None, "deep": [{"x": None}, [None, 1.5]]}
    ]
    assert math.isnan(record["loss"])  # type: ignore[arg-type]


def test_writer_refuses_to_overwrite(tmp_path: Path) -> None:
    write_lines(tmp_path, RUN)
    message = f"run directory must hold no records yet, got {tmp_path / 'records.jsonl'}. Choose another, or"
    with pytest.raises(FileExistsError, match=re.escape(message)), RecordWriter(tmp_path):
        pass
    assert read_records(tmp_path).run == RUN


def test_closed_writer_refuses_to_write(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path)
    with pytest.raises(RuntimeError, match="must be open to write, got a closed one"):
        writer.write(RUN)
    with writer:
        writer.write(RUN)
    with pytest.raises(RuntimeError, match="must be open to write, got a closed one"):
        writer.write(RUN)


def test_columns_are_one_methods_values_with_nan_for_what_is_missing(tmp_path: Path) -> None:
    write_lines(
        tmp_path,
        RUN,
        {"kind": "step", "method": "a", "step": 1, "loss": 2.0},
        {"kind": "step", "method": "b", "step": 1, "loss": 9.0},
        {"kind": "step", "method": "a", "step": 2, "loss": None},
        {"kind": "step", "method": "a", "step": 3},
        {"kind": "step", "method": "a", "step": 4, "loss": "2"},
        {"kind": "step", "method": "a", "step": 5, "loss": True},
        '{"kind": "step", "method": "a", "step": 6, "loss": Infinity}',
        {"kind": "eval", "method": "a", "step": 6, "loss": 1.0},
    )
    records = read_records(tmp_path)
    step, loss = records.columns("a", "step", "loss")
    np.testing.assert_array_equal(step, np.arange(1.0, 7.0))
    np.testing.assert_array_equal(loss, [2.0] + [math.nan] * 5)
    np.testing.assert_array_equal(records.columns("a", "step", "loss", kind="eval"), [[6.0], [1.0]])
    assert [column.dtype for column in records.columns("unknown", "step")] == [np.float64]
    assert records.columns("unknown", "step")[0].size == 0
    assert number({"x": 3}, "x") == 3.0


def test_diverged_means_a_loss_that_is_there_and_not_finite(write_run: WriteRun) -> None:
    records = read_records(write_run(("dense", "topk"), diverged="topk"))
    assert records.diverged("topk")
    assert not records.diverged("dense")
    assert not records.diverged("unknown")


def test_unfinished_are_those_asked_for_or_started_without_a_result(write_run: WriteRun) -> None:
    run_dir = write_run(("dense", "topk"), unfinished="topk", run={"config": {"methods": ["dense", "topk", "dgc"]}})
    assert read_records(run_dir).unfinished == ("topk", "dgc")
    bare = write_run(("dense", "topk"), unfinished="topk", name="bare", run={"config": None})
    assert read_records(bare).unfinished == ("topk",)


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_killed_run_loses_only_its_last_line(write_run: WriteRun, cut: int) -> None:
    path = write_run(("topk",)) / "records.jsonl"
    whole = read_records(path.parent)
    path.write_bytes(path.read_bytes()[:-cut])
    records = read_records(path.parent)
    if cut == 1:  # only the line end is missing: the record is whole
        assert (records.methods, records.truncated) == (whole.methods, False)
    else:
        assert (records.methods, records.truncated) == ([], True)
    assert (records.steps, records.evals) == (whole.steps, whole.evals)


def test_missing_records(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with pytest.raises(FileNotFoundError, match=re.escape(f"run directory must hold records.jsonl, got {path}")):
        read_records(tmp_path)


@each(
    ("lines", "message"),
    [
        (["", ""], "line 1 must be a JSON object with a kind, got ''"),
        ([{"kind": "step", "method": "m"}], "line 1 must be a run record, got kind 'step'"),
        ([RUN, "{oops", RUN], "line 2 must be a JSON object with a kind, got '{oops'"),
        ([RUN, [1, 2]], "line 2 must be a JSON object with a kind, got '[1, 2]'"),
        ([RUN, {"method": "m"}], "line 2 must be a JSON object with a kind"),
        ([RUN, {"kind": "eval", "method": 7}], "line 2 must name its method, got 7"),
        ([RUN, {"kind": "note"}, RUN], "line 3 must be no second run record, got kind 'run'"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, lines: list[object], message: str) -> None:
    write_lines(tmp_path, *lines)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'records.jsonl'} {message}")):
        read_records(tmp_path)


@each("content", [b"", b'{"kind": "ru'])
def test_a_file_without_any_record(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "records.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="line 1 must be a run record, got nothing"):
        read_records(tmp_path)


def test_another_format_is_refused_by_number(tmp_path: Path) -> None:
    write_lines(tmp_path, RUN | {"format": 2, "gaussiank": "3.0.0"})
    message = f"format must be 1, got 2 in {tmp_path / 'records.jsonl'} line 1. Read this run with the gaussiank that"
    with pytest.raises(ValueError, match=re.escape(message) + r".*\(3\.0\.0\)"):
        read_records(tmp_path)
