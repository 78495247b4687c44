"""``gaussiank replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gaussiank_lab.cli.command import numbers, parts


def replay(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory that a Recorder has written.")],
    operators: Annotated[
        str,
        typer.Option(help="Operators, separated by commas; settings follow a colon: gaussiank:mode=published."),
    ] = "topk,gaussiank,gaussiank:mode=published,dgc,trimmedtopk,randomk",
    density: Annotated[
        str | None, typer.Option(help="Densities, separated by commas; by default the density of the run.")
    ] = None,
    wire: Annotated[
        str | None,
        typer.Option(
            "--wire",
            "--codec",
            help="Wires, separated by commas: rice+8bit,chunks+bf16. What rounding removes counts as not sent.",
        ),
    ] = None,
) -> None:
    """Re-run selection operators offline on recorded vectors; report error, count, size and time.

    Times are those of this machine, now; everything else repeats the run.
    """
    from gaussiank_lab.study.replay import replay as run_replay
    from gaussiank_lab.study.replay import replay_table

    densities = [] if density is None else list(numbers("density", density))
    rows = run_replay(run_dir, list(parts(operators)), densities, [] if wire is None else list(parts(wire)))
    Console().print(replay_table(rows))
