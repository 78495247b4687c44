import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tests.each import each

from gaussiank_lab.metric import Metric
from gaussiank_lab.report.records import read_records
from gaussiank_lab.report.summary import (
    bytes_text,
    ms_text,
    name_lines,
    summary_rows,
    summary_table,
    times_text,
)

WriteRun = Callable[..., Path]
LONG = (
    "dense",
    "randomk:feedback=false",
    "gaussiank:mode=published",
    "gaussiank:mode=published,feedback=false,density=0.001",
)


def printed(run_dir: Path, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(summary_table(read_records(run_dir)))
    return out.getvalue().splitlines()


def test_rows_hold_the_values_of_the_records(write_run: WriteRun) -> None:
    assert summary_rows(read_records(write_run(("dense", "topk", "gaussiank")))) == [
        ("dense", "87.0", "1.00", "370 kB", "1.0x", "18.0", "14.0", "0.00", "3.00"),
        ("topk", "84.1", "1.00", "1.54 kB", "241x", "18.3", "14.0", "0.30", "3.00"),
        ("gaussiank", "83.6", "1.00", "1.60 kB", "231x", "18.4", "14.0", "0.40", "3.00"),
    ]


def test_table_shows_every_value_under_its_header(write_run: WriteRun) -> None:
    lines = printed(write_run())
    header = " ".join(lines[:2]).split()
    assert [word for word in header if word not in ("%", "ms", "step", "sent/")] == [
        "accuracy", "compute", "select", "comm", "method", "kept/k", "compression",
    ]  # fmt: skip
    assert lines[4].split() == ["topk", "84.1", "1.00", "1.54", "kB", "241x", "18.3", "14.0", "0.30", "3.00"]


@pytest.mark.parametrize("methods", [("topk",), ("dense", "topk", "gaussiank", "randomk"), LONG])
def test_table_fits_80_columns_and_cuts_no_number(write_run: WriteRun, methods: tuple[str, ...]) -> None:
    run_dir = write_run(methods)
    lines = printed(run_dir)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for row in summary_rows(read_records(run_dir)):
        assert all(cell in text for cell in row[1:])
        assert all(part in text for part in name_lines(row[0]).split("\n"))


def test_markup_and_control_characters_of_a_name_are_shown_not_obeyed(write_run: WriteRun) -> None:
    text = "\n".join(printed(write_run(("[red]x[/]", "\x1b[31m", "\ud800"))))
    assert "[red]x[/]" in text
    assert "?[31m" in text
    assert "\x1b" not in text


def test_a_run_of_language_shows_nats_and_fits_80_columns(write_run: WriteRun) -> None:
    metric = Metric("loss", "loss", "nats/byte")
    run_dir = write_run(LONG, run={"metric": metric.as_record()})
    assert [row[1] for row in summary_rows(read_records(run_dir))] == ["0.500"] * 4
    lines = printed(run_dir)
    assert "loss" in lines[0]
    assert "nats/byte" in lines[1]
    assert max(map(len, lines)) <= 80


def test_diverged_method_says_so(write_run: WriteRun) -> None:
    rows = summary_rows(read_records(write_run(("dense", "topk"), diverged="topk")))
    assert [row[1] for row in rows] == ["87.0", "diverged"]
    assert max(map(len, printed(write_run(LONG, diverged=LONG[1], name="long")))) <= 80


def test_unfinished_methods_are_named_below(write_run: WriteRun) -> None:
    lines = printed(write_run(("dense", "topk"), unfinished="topk"))
    assert lines[-1].strip() == "Not finished: topk"
    assert len(lines) == 5


def test_run_without_any_result(write_run: WriteRun) -> None:
    assert printed(write_run(()))[-1].strip() == "No method finished."


def test_missing_numbers_are_a_dash(write_run: WriteRun) -> None:
    run_dir = write_run(("topk",), unfinished="topk")
    with (run_dir / "records.jsonl").open("a") as file:
        file.write('{"kind": "method", "method": "topk", "compression": null}\n')
    assert summary_rows(read_records(run_dir)) == [("topk", *["–"] * 8)]


@each(
    ("count", "text"),
    [
        (0, "0 B"), (512.4, "512 B"), (999.4, "999 B"), (999.6, "1.00 kB"), (1536, "1.54 kB"), (9_996, "10.0 kB"),
        (99_960, "100 kB"), (370_236, "370 kB"), (25.6e6, "25.6 MB"), (1e9, "1.00 GB"),
        (2e18, "2000 PB"), (math.nan, "–"),
    ],
)  # fmt: skip
def test_bytes_have_three_digits(count: float, text: str) -> None:
    assert bytes_text(count) == text


def test_times_and_milliseconds() -> None:
    assert [times_text(x) for x in (1, 9.94, 9.96, 240.6, 12345, math.nan)] == [
        "1.0x",
        "9.9x",
        "10x",
        "241x",
        "12,345x",
        "–",
    ]
    assert [ms_text(x) for x in (0, 0.00999, 0.0123, 0.99996, 1.5)] == ["0.00", "9.99", "12.3", "1,000", "1,500"]


def test_long_names_break_after_colon_and_commas() -> None:
    assert name_lines("gaussiank") == "gaussiank"
    assert name_lines("topk:a=1") == "topk:a=1"
    assert name_lines("gaussiank:mode=published,seed=3") == "gaussiank:\nmode=published,\nseed=3"
