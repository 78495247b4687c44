"""The commands of the gradient study: analyze and replay."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Directory that a Recorder has written.")]


def analyze(run_dir: RunArgument) -> None:
    """Show what the gradients of a recorded run look like: laws, bounds, residuals.

    Writes one HTML page and each figure as SVG and PNG into the run's directory.
    """
    from gaussiank_lab.study.report import write_analysis
    from gaussiank_lab.study.study import read_study
    from gaussiank_lab.study.summary import bounds_table, headline

    study = read_study(run_dir)
    console = Console()
    console.print(headline(study), highlight=False)
    console.print(bounds_table(study))
    page, plots = write_analysis(run_dir)
    console.print(f"Figures: {plots[0].parent if plots else 'none'}", soft_wrap=True, highlight=False)
    console.print(f"Report: {page}", soft_wrap=True, highlight=False)


def replay(
    run_dir: RunArgument,
    operators: Annotated[
        str, typer.Option(help="Operators, by comma; settings by colon: gaussiank:mode=published.")
    ] = "topk,gaussiank,gaussiank:mode=published,dgc,trimmedtopk,randomk",
    density: Annotated[
        str | None, typer.Option(help="Densities, by comma; what the run asked for, if not given.")
    ] = None,
    wire: Annotated[
        str | None,
        typer.Option("--wire", "--codec", help="Wires, by comma: rice+8bit,chunks+bf16. Rounding counts as not sent."),
    ] = None,
) -> None:
    """Put operators on the raw vectors of a recorded run: contraction, kept/k, bits and time.

    Times are of this machine now; all else repeats the run.
    """
    from gaussiank_lab.study.replay import replay as run_replay
    from gaussiank_lab.study.replay import replay_table

    rows = run_replay(
        run_dir,
        [spec.strip() for spec in operators.split(",") if spec.strip()],
        [] if density is None else [_number(text) for text in density.split(",")],
        [] if wire is None else [text.strip() for text in wire.split(",")],
    )
    Console().print(replay_table(rows))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"density must be numbers by comma, got {text!r}. Give 0.001,0.01, for example.")
    return value
