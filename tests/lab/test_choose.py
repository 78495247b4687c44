"""The tables of docs/choose.md say what ``gaussiank advise`` prints."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from gaussiank_lab.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "choose.md"
ROW = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \| (none|[\d.]+x) \| (?:leave the hook out|`([^`]+)`) \|$", re.MULTILINE)


def test_every_row_is_what_advise_prints() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(rows) == 8
    for preset, model, gain, call in rows:
        printed = (
            CliRunner().invoke(app, ["advise", "--preset", preset, "--model", model], env={"COLUMNS": "500"}).stdout
        )
        assert ("Do not compress" in printed) == (gain == "none"), (preset, model)
        assert re.findall(r"gaussiank\.compress\(.*\)", printed) == ([call] if call else []), (preset, model)
        assert gain == "none" or f"compressed: {gain}," in printed, (preset, model)


def test_every_row_of_adamw_is_what_advise_prints() -> None:
    rows = re.findall(
        r"^\| `(--[^`]+)` \| ([^|,]+?)(?:, (1/\d+))? \| ([^|]+), ([^|]+) \| (none|[+-][\d.]+) \|$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rows) == 6
    for arguments, method, density, step, dense, nats in rows:
        printed = CliRunner().invoke(app, ["advise", *arguments.split()], env={"COLUMNS": "500"}).stdout
        assert f"\nTake {method}" in printed, (arguments, printed)
        assert f"  density  {density or 'all'}\n" in printed, (arguments, printed)
        assert f"  step     {step}, predicted" in printed, (arguments, printed)
        assert dense in printed.partition(", predicted")[2], (arguments, printed)
        assert f"  price    {nats}" in printed, (arguments, printed)
