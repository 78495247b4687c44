"""Seconds to a loss, from trainings and timings that a test can compute again."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from gaussiank_lab.bench import targets
from gaussiank_lab.bench.net import race as racing
from gaussiank_lab.bench.net.race import ENTRANTS, OVERLAPPED, Entrant, Race, lead
from gaussiank_lab.bench.net.run import NetConfig
from gaussiank_lab.bench.rows import Row
from gaussiank_lab.bench.tables import race_table
from gaussiank_lab.bench.targets import RACE_TARGETS, check_race
from gaussiank_lab.cli import app
from gaussiank_lab.report.records import RecordWriter

DENSE, SPARSE, SLOW = ENTRANTS[0], ENTRANTS[3], ENTRANTS[1]
OURS = next(one for one in ENTRANTS if one.family == "local")
INT8 = next(one for one in ENTRANTS if one.family == "diloco8")
STEP_S = {DENSE.name: 3.0, SPARSE.name: 0.1, SLOW.name: 0.2, OURS.name: 0.1, INT8.name: 0.4}
LOSSES = {  # at steps 100, 200, ...
    DENSE.name: [3.0, 2.5, 2.0, 1.7, 1.5],
    SPARSE.name: [2.0, 1.4],
    SLOW.name: [3.0, 2.9, 2.8],
    OURS.name: [3.0, 1.7],
    INT8.name: [3.0, 2.0, 1.6],
}


class Timed:
    """The network benchmark, with steps as long as they are said to be."""

    def __init__(self, config: NetConfig, on_note: object) -> None:
        self.config = config

    def run(self) -> Iterator[list[Row]]:
        names = self.config.methods if OVERLAPPED not in self.config.methods else ("alone", OVERLAPPED)
        for rate in self.config.rates:
            yield [
                {
                    "kind": "net", "method": name, "model": "transformer", "workers": 4, "rate": rate,
                    "step_s": STEP_S.get(name, 1.0), "round_step_s": [1.02 if name == OVERLAPPED else 1.0],
                    "rate_mbit": 20.0, "accounted_bytes": 1000.0, "load_before": 1.0,
                }
                for name in names
            ]  # fmt: skip


@pytest.fixture
def race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Race:
    entrants: list[Entrant] = [DENSE, SPARSE, SLOW, OURS, INT8]
    for entrant in entrants:
        with RecordWriter(entrant.job(0).where(tmp_path)) as writer:
            writer.write({"kind": "run", "format": 1})
            for number, loss in enumerate(LOSSES[entrant.name], 1):
                writer.write({"kind": "eval", "method": entrant.method, "step": 100 * number, "loss": loss})
    for module in (racing, targets):
        monkeypatch.setattr(module, "NetBench", Timed)
    return Race(tmp_path, entrants)


def test_the_goal_is_what_dense_has_at_four_fifths_of_its_steps(race: Race) -> None:
    _, rows, *_ = race.run()
    found = {row["method"]: row for row in rows}
    assert {row["target_loss"] for row in rows} == {1.7}
    assert (found[DENSE.name]["steps"], found[DENSE.name]["seconds"]) == (400, 1200)
    assert found[SPARSE.name]["steps"] == pytest.approx(150)
    assert found[SPARSE.name]["times_faster"] == pytest.approx(1200 / 15)
    assert (found[SLOW.name]["seconds"], found[SLOW.name]["at_least_s"]) == (None, pytest.approx(60))
    console = Console(width=80, file=io.StringIO())
    with console.capture() as printed:
        console.print(race_table(rows))
    text = printed.get()
    assert max(map(len, text.splitlines())) <= 80
    assert "20mbit: seconds to a test loss of 1.700" in text
    assert all(text.count(word) for word in ("1,200", "80.0", "–"))


def test_every_target_is_judged(race: Race) -> None:
    judged = {row["key"]: row for row in check_race(race) if row["kind"] == "check"}
    assert set(judged) == set(RACE_TARGETS)
    measured = {key: row["measured"] for key, row in judged.items()}
    # PowerSGD never gets there: the 60 s of its training are the least that it takes
    assert measured == pytest.approx(
        {"ddp-100": 80, "powersgd-100": 4, "ddp-20": 60, "diloco8-20": 0.4 * 275 / 20, "overlap-20": 2}
    )
    assert judged["powersgd-100"]["verdict"] == "BELOW FLOOR"


def test_who_never_gets_there_leads_nobody(race: Race) -> None:
    _, rows, *_ = race.run()
    assert lead(rows, "20mbit", "powersgd", "ddp") == 0


def test_what_has_a_curve_is_not_trained_again(race: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    monkeypatch.setattr(racing.Job, "do", lambda job, curves: trained.append(job.config.methods[0]))
    replace(race, entrants=(*race.entrants, ENTRANTS[4])).train()
    assert trained == ["topk"]


def test_a_check_needs_its_links() -> None:
    result = CliRunner().invoke(app, ["bench", "race", "--check", "--rates", "20mbit"])
    assert isinstance(result.exception, ValueError)
    assert "rates must hold 20mbit, 100mbit with check, got 20mbit" in str(result.exception)
