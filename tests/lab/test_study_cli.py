"""analyze and replay as a user runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.each import each
from typer.testing import CliRunner

from gaussiank_lab.cli import app
from gaussiank_lab.study.recorder import Recorder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own loop, recorded in three lines."""
    run_dir = tmp_path_factory.mktemp("runs") / "mine"
    model = torch.nn.Linear(40, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(run_dir, every=2) as recorder:
        recorder.watch(model, optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 40)).square().mean().backward()
            optimizer.step()
    return run_dir


def test_analyze(run_dir: Path) -> None:
    done = CliRunner().invoke(app, ["analyze", str(run_dir)])
    assert done.exit_code == 0, done.output
    assert "The gradient is a bell in" in done.output
    assert f"Report: {run_dir / 'gradients.html'}" in done.output.replace("\n", "")
    assert (run_dir / "gradients.html").is_file()
    assert (run_dir / "plots" / "fits.png").is_file()


@each(
    ("arguments", "error", "message"),
    [
        (["analyze", "nowhere"], FileNotFoundError, "run directory must hold gradients.jsonl"),
        (["replay", "nowhere"], FileNotFoundError, "run directory must hold gradients.jsonl"),
        (
            ["replay", "nowhere", "--density", "much"],
            ValueError,
            "density must be numbers separated by commas, got 'much'",
        ),
        (["replay", "nowhere", "--operators", "tpk"], ValueError, "compressor must be one of"),
        (["replay", "nowhere", "--wire", "rice"], ValueError, "wire must be index+values"),
        (["replay", "nowhere", "--codec", "rice+bf16,x+bf16"], ValueError, "index must be one of"),
    ],
)
def test_mistakes(arguments: list[str], error: type[Exception], message: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, error)
    assert message in str(done.exception)


def test_replay_needs_vectors(run_dir: Path) -> None:
    done = CliRunner().invoke(app, ["replay", str(run_dir)])
    assert isinstance(done.exception, FileNotFoundError)
    assert "vectors=8" in str(done.exception)
