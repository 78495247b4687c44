"""``gaussiank analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def analyze(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory that a Recorder has written.")],
) -> None:
    """Show what the gradients of a recorded run look like: distributions, bounds, residuals.

    Writes one HTML page, and each figure as SVG and PNG, to the run's directory.
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
