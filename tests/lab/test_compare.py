from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gaussiank_lab.metric import Metric
from gaussiank_lab.report.page import headline, read_runs, write_comparison
from gaussiank_lab.report.summary import summary_rows

WriteRun = Callable[..., Path]


def test_methods_are_told_apart_by_their_runs(write_run: WriteRun, tmp_path: Path) -> None:
    runs = [write_run(("dense", "topk"), name="a", steps=20), write_run(("topk",), name="b", steps=10)]
    records = read_runs(runs)
    assert [row[0] for row in summary_rows(records)] == ["dense:a", "topk:a", "topk:b"]
    assert [len(records.columns(name, "step")[0]) for name in records.names] == [20, 20, 10]
    assert records.unfinished == ()
    assert headline(records).startswith("topk:a reached")
    page = write_comparison(records, tmp_path / "new" / "page.html").read_text()
    assert "topk:" in page
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "page.html"]


def test_settings_that_differ_stand_side_by_side(write_run: WriteRun) -> None:
    config = {"model": "lenet5", "methods": ["topk"], "lr": 0.1}
    changed = {**config, "lr": 0.2, "ema": 0.9}
    runs = [
        write_run(("topk",), name="a", steps=10, run={"config": config, "command": "train a"}),
        write_run(("topk",), name="b", steps=10, run={"config": changed, "command": "train b"}),
    ]
    run = read_runs(runs).run
    assert run["config"] == {
        "model": "lenet5",
        "methods": ["topk:a", "topk:b"],
        "lr": "0.1 | 0.2",
        "ema": "none | 0.9",
    }
    assert run["command"] == "train a\ntrain b"
    assert run["torch"] == "2.13.0"


def test_runs_of_one_name_get_as_much_of_their_path_as_it_takes(write_run: WriteRun) -> None:
    records = read_runs([write_run(("topk",), name=f"{seed}/run", steps=10) for seed in ("s1", "s2")])
    assert records.names == ("topk:s1/run", "topk:s2/run")


def test_long_names_become_letters_with_a_legend(write_run: WriteRun, tmp_path: Path) -> None:
    names = ("lenet5-20261124-211501", "lenet5-20261124-213002")
    runs = [write_run(("dense", "randomk:feedback=false"), name=name, steps=10) for name in names]
    records = read_runs(runs)
    assert records.names == ("dense:A", "randomk:feedback=false:A", "dense:B", "randomk:feedback=false:B")
    assert records.runs == {"A": str(runs[0]), "B": str(runs[1])}
    page = write_comparison(records, tmp_path / "page.html").read_text()
    assert f"A: {runs[0]}</p>" in page
    assert read_runs([write_run(("topk",), name=f"{i:02}/{names[0]}", steps=10) for i in range(27)]).names[-2:] == (
        "topk:Z",
        "topk:A1",
    )
    assert read_runs([write_run(("topk",), name=name, steps=10) for name in "ab"]).runs == {}


def test_what_cannot_be_compared_is_refused(write_run: WriteRun, tmp_path: Path) -> None:
    one = write_run(("topk",), name="a", steps=10)
    loss = Metric("loss", "loss", "nats").as_record()
    other = write_run(("topk",), name="b", steps=10, run={"metric": loss})
    with pytest.raises(ValueError, match=r"^runs must be judged by the same metric, got accuracy in a and loss in b\."):
        read_runs([one, other])
    with pytest.raises(ValueError, match=r"^runs must differ, got .*a twice\."):
        read_runs([one, tmp_path / "x" / ".." / "a"])
    with pytest.raises(FileNotFoundError, match="run directory must hold records"):
        read_runs([one, tmp_path / "none"])
