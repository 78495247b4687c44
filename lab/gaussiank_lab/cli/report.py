"""``gaussiank report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories that train has written.")],
    figures: Annotated[
        Path | None, typer.Option(help="Write the figures of one run as SVG files to this directory.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of the page; by default RUN/report.html, or comparison.html.")
    ] = None,
) -> None:
    """Print the table of a run and rewrite its HTML report; or compare several runs on one page."""
    from gaussiank_lab.report.page import COMPARISON_NAME, read_runs, write_comparison, write_figures, write_report
    from gaussiank_lab.report.records import read_records
    from gaussiank_lab.report.summary import summary_table

    one = len(run_dirs) == 1
    if figures and not one:
        raise ValueError(f"figures must be of one run, got {len(run_dirs)} runs. Leave it out, or name one run.")
    console, records = Console(), read_records(run_dirs[0]) if one else read_runs(run_dirs)
    console.print(summary_table(records))
    for name, run in records.runs.items():
        console.print(f"{name}: {run}", soft_wrap=True, highlight=False, markup=False)
    page = write_report(run_dirs[0], out) if one else write_comparison(records, out or Path(COMPARISON_NAME))
    console.print(f"{'Report' if one else 'Comparison'}: {page}", soft_wrap=True, highlight=False)
    for path in write_figures(run_dirs[0], figures) if figures else ():
        console.print(f"Figure: {path}", soft_wrap=True, highlight=False)
