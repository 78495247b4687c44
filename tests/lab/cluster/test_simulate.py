from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.each import each
from typer.testing import CliRunner

from gaussiank_lab.cli import app
from gaussiank_lab.cluster.scenario import of_preset
from gaussiank_lab.cluster.simulate import counts_of, paper_rows, parse_counts, run_simulation, show_paper
from gaussiank_lab.sim import Cluster, Tier

ARGUMENTS = ["simulate", "--preset", "10gbe-16xV100", "--model", "vgg16-imagenet"]


def output(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "80", "NO_COLOR": "1"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_table_shows_every_method_and_where_numbers_come_from() -> None:
    text = output(*ARGUMENTS)
    table, scaling = text.split("Scaling efficiency")
    for name in ("dense fp32", "dense bf16", "topk", "topk split", "topk hierarchical", "gaussiank", "trimmedtopk"):
        assert f"\n{name} " in table
    assert "4096" in scaling
    assert "Assumed:" in scaling
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in text


def test_json_repeats_with_its_seed() -> None:
    first, again, other = (output(*ARGUMENTS, "--json", "--workers", "4,16", "--seed", seed) for seed in "112")
    assert first == again != other
    found = json.loads(first)
    assert found["kind"] == "gaussiank simulation"
    assert {row["workers"] for row in found["predictions"]} == {4, 16}
    assert all(row["step_s"] > 0 for row in found["predictions"])


def test_figures_and_traces_are_written(tmp_path: Path) -> None:
    output(*ARGUMENTS, "--workers", "1,16", "--out", str(tmp_path))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert {"scaling.svg", "timeline.svg", "trace-dense-bf16.json", "trace-topk.json"} <= set(names)
    trace = json.loads((tmp_path / "trace-topk.json").read_text())
    assert trace["otherData"] == {
        "method": "topk", "workers": 16, "model": "vgg16-imagenet", "cluster": "10gbe-16xV100",
    }  # fmt: skip


def test_price_turns_hours_into_cost() -> None:
    rows = [
        next(line for line in output(*ARGUMENTS, "--workers", "16", *more).splitlines() if line.startswith("topk "))
        for more in ((), ("--price", "10"))
    ]
    hours, cost = (float(row.split()[-1]) for row in rows)
    assert cost == pytest.approx(10 * hours, rel=0.01)


def test_papers_table_stands_beside_the_confirmed_headline() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    show_paper(console)
    text = console.export_text()
    for number in ("2.33", "3.63", "1.51"):
        assert number in text
    assert "The headline is not reproduced" in text


def test_papers_ranking_is_reproduced_where_it_is_known() -> None:
    for row in paper_rows(steps=2):
        assert row.gain("Dense") >= 1, row.model
        assert row.gain("TopK") > 1.3, row.model
        assert row.gain("today", over="GaussianK") <= 1.0001, row.model  # today is never slower than the published code


def test_workers_beyond_the_cluster_are_refused_when_asked_for_and_left_out_otherwise() -> None:
    found = of_preset("10gbe-16xV100", "resnet50")
    link = found.scenario.cluster.tiers[-1].link
    small = replace(found, scenario=replace(found.scenario, cluster=Cluster("small", (Tier("rack", link, 64),))))
    assert counts_of(small, None) == ((1, 2, 4, 8, 16, 32, 64), (16,))
    with pytest.raises(ValueError, match=r"^workers must be at most 64 on small, got 128\."):
        run_simulation(small, counts_of(small, (16, 128))[0], 0.001)


@each("text", ["0", "four", "4,-1", "", "2.5"])
def test_workers_must_be_whole_numbers(text: str) -> None:
    with pytest.raises(ValueError, match=r"^workers must be whole numbers of at least 1 separated by commas, got "):
        parse_counts(text)


@each(
    ("arguments", "sentence"),
    [
        ([*ARGUMENTS, "--price", "0"], "price must be above 0, got 0. "),
        (["simulate", "--paper", "--model", "resnet50"], "paper must stand alone, "),
        ([*ARGUMENTS, "--density", "0"], "density must be in (0, 1], got 0.0. "),
        (["simulate"], "preset or probe must be given, one of them, got none. "),
    ],
)
def test_mistakes_are_named(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ValueError)
    assert str(done.exception).startswith(sentence)


def test_command_needs_no_torch() -> None:
    script = (
        "import sys; from gaussiank_lab.cli import app; "
        f"app({[*ARGUMENTS, '--workers', '16']!r}, standalone_mode=False); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
