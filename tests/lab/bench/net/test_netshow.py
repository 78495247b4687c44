"""Tables, plots and verdicts from rows."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gaussiank_lab.bench import show, targets
from gaussiank_lab.bench.net.run import NetConfig
from gaussiank_lab.bench.plots import write_net_plots
from gaussiank_lab.bench.rows import Row, read_rows
from gaussiank_lab.bench.show import run_net_check
from gaussiank_lab.bench.tables import net_table, off_percent
from gaussiank_lab.bench.targets import NET_TARGETS, _bytes, _end_to_end, _exchange, _loopback


def row(method: str, *rounds: float, **others: Any) -> Row:
    return {
        "kind": "net", "method": method, "model": "m", "round_step_s": list(rounds), "step_s": rounds[0],
        "wait_s": 0.9 * rounds[0],
        "kernel_sent_content_bytes": 1010.0, "accounted_bytes": 1000.0, **others,
    }  # fmt: skip


def test_the_table_is_80_columns_wide_and_has_every_method(rows: list[Row]) -> None:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as printed:
        console.print(net_table(rows))
    text = printed.get()
    assert max(map(len, text.splitlines())) <= 80
    for one in rows:
        assert f"\n{one['method'][:6]}" in text
    assert "lenet5, 2 workers, loopback, density 0.01, batch 2" in text
    assert "whole rounds of methods that exchange seldom: local:sync_every=2" in " ".join(text.split())


def test_plots_are_written_for_each_model(rows: list[Row], tmp_path: Path) -> None:
    slow = [{**one, "rate": "20mbit", "rate_mbit": 20.0, "step_s": one["step_high_s"]} for one in rows]
    paths = write_net_plots([*rows, *slow], tmp_path)
    assert [path.name for path in paths] == ["net_lenet5_2.svg", "net_lenet5_2.png"]
    drawn = paths[0].read_text(encoding="utf-8")
    assert "gaussiank/split" in drawn
    assert drawn.index("20mbit") < drawn.index("loopback")  # fastest on the right
    assert write_net_plots([], tmp_path) == []


def test_verdicts_follow_from_the_rounds_ratios() -> None:
    assert _exchange([row("ddp", 6.0, 6.0, 9.0), row("topk", 0.05, 0.06, 0.05)])["exchange"] == pytest.approx(120)
    found = _end_to_end([row("ddp", 8.0), row("paper-topk", 4.0), row("ddp-bf16", 2.0), row("topk", 1.0)])
    assert found == pytest.approx({"dense": 8, "share": 90, "paper-topk": 4, "ddp-bf16": 2})
    auto = _loopback([row("ddp", 2.0, model="lenet5"), row("topk/auto", 2.2, model="lenet5")])
    assert auto == pytest.approx({"auto-lenet5": 10})
    others = {
        "exchange",
        "bytes",
        "auto-resnet20",
        "ddp-fp16",
        "ddp-powersgd",
        "paper-dgc",
        "split",
        "leader",
        "allgather",
    }
    assert set(found) | set(auto) | others == set(NET_TARGETS)


def test_flat_and_linear_bytes_are_told_apart() -> None:
    names = ("topk", "topk/split", "topk/leader")
    rows = [
        {"method": name, "workers": workers, "accounted_bytes": 100.0 * (workers - 1 if name == "topk" else 1)}
        for workers in (2, 16)
        for name in names
    ]
    assert _bytes(rows) == pytest.approx({"split": 0, "leader": 0, "allgather": 0})
    rows[1]["accounted_bytes"] = 130.0
    assert _bytes(rows)["split"] == pytest.approx(30)


def test_the_kernels_surplus_is_in_percent() -> None:
    assert off_percent(row("topk", 1.0)) == pytest.approx(1)


class Recorded:
    """A benchmark that needs no ranks: a method of more letters takes less time."""

    def __init__(self, config: NetConfig, on_note: object) -> None:
        self.config = config

    def run(self) -> Iterator[list[Row]]:
        for model, workers in itertools.product(self.config.models, self.config.workers):
            yield [row(name, 9.0 / len(name), model=model, workers=workers) for name in self.config.methods]


def test_a_check_judges_every_promise_and_fails_below_a_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(targets, "NetBench", Recorded)
    monkeypatch.setattr(show, "missing", lambda: None)
    assert run_net_check(0, tmp_path) == 1
    rows = read_rows(tmp_path)
    judged = {one["key"]: one for one in rows if one["kind"] == "check"}
    assert set(judged) == set(NET_TARGETS)
    assert judged["exchange"]["verdict"] == "BELOW FLOOR"  # ddp has three letters, topk four
    assert judged["dense"]["measured"] == pytest.approx(4 / 3)
    assert judged["share"]["verdict"] == "target met"
    assert capsys.readouterr().out.count("BELOW FLOOR") == len(
        [one for one in judged.values() if one["verdict"] == "BELOW FLOOR"]
    )


def test_a_check_without_namespaces_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "missing", lambda: "network namespaces need root")
    with pytest.raises(RuntimeError, match=r"check must have links of a given rate: network namespaces need root\."):
        run_net_check(0, tmp_path)
