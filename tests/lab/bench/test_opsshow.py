from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.each import each

from gaussiank_lab.bench import show
from gaussiank_lab.bench.ops import OpsConfig
from gaussiank_lab.bench.rows import Row, read_rows
from gaussiank_lab.bench.show import run_ops, run_ops_check
from gaussiank_lab.bench.targets import OPS_TARGETS, CheckConfig


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


class FakeBench:
    """Yields prepared rows, and is stopped after some of them."""

    settings: list[list[Row]]
    stop_after: int

    def __init__(self, config: OpsConfig, on_round: object) -> None:
        pass

    def run(self) -> Iterator[list[Row]]:
        for place, rows in enumerate(self.settings):
            if place == self.stop_after:
                raise KeyboardInterrupt
            yield rows


@pytest.mark.parametrize("stop_after", [0, 1, 3, 8])
def test_ctrl_c_leaves_what_was_measured(
    tmp_path: Path,
    settings_of_rows: list[list[Row]],
    fast_config: OpsConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stop_after: int,
) -> None:
    monkeypatch.setattr(FakeBench, "settings", settings_of_rows, raising=False)
    monkeypatch.setattr(FakeBench, "stop_after", stop_after, raising=False)
    monkeypatch.setattr(show, "OpsBench", FakeBench)
    status = run_ops(fast_config, tmp_path)
    assert status == (130 if stop_after < 8 else 0)
    assert read_rows(tmp_path) == [row for rows in settings_of_rows[:stop_after] for row in rows]
    assert (tmp_path / "operator_time.svg").is_file() == (stop_after > 0)
    shown = capsys.readouterr().out
    stopped = f"Stopped: {stop_after} of 8 settings were measured and are kept."
    assert (stopped in shown) == (stop_after < 8)
    assert shown.count("entries, density 0.01, normal") == (stop_after > 0) + (stop_after > 4)
    assert f"Wrote {tmp_path / 'rows.jsonl'}" in shown
    assert max(map(len, (line for line in shown.splitlines() if not line.startswith("Wrote")))) <= 80


def rows_of(values: dict[str, float]) -> list[Row]:
    about = {"kind": "check", "backend": "avx2", "machine": "a cpu", "date": "2026-11-24T00:00:00+00:00"}
    return [
        {
            **about,
            "key": key,
            **OPS_TARGETS[key]._asdict(),
            "measured": value,
            "verdict": OPS_TARGETS[key].verdict(value),
        }
        for key, value in values.items()
    ]


@each(("steady", "status"), [(98.0, 0), (80.0, 0), (60.0, 1)])
def test_check_fails_below_a_floor_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], steady: float, status: int
) -> None:
    values = {key: promise.target for key, promise in OPS_TARGETS.items()} | {"steady": steady}
    monkeypatch.setattr(show, "check_ops", lambda config, on_round: iter(rows_of(values)))
    assert run_ops_check(tmp_path, quick=False, seed=0) == status
    shown = capsys.readouterr().out
    assert max(map(len, (line for line in shown.splitlines() if not line.startswith("Wrote")))) <= 80
    assert shown.count("target met") == len(OPS_TARGETS) - (steady < 97)
    assert shown.count("BELOW FLOOR") == status
    assert [row["key"] for row in read_rows(tmp_path)] == list(OPS_TARGETS)


def test_check_stopped_by_ctrl_c_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(config: CheckConfig, on_round: object) -> Iterator[Row]:
        yield from rows_of({"cold": 91.0})
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "check_ops", stopped)
    assert run_ops_check(tmp_path, quick=True, seed=0) == 130
    assert len(read_rows(tmp_path)) == 1
    assert "not measured" in capsys.readouterr().out
