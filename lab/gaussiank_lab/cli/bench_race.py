"""``gaussiank bench race``."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from gaussiank_lab.cli.command import parts


def race(
    rates: Annotated[str, typer.Option(help="Rates of the links.")] = "20mbit,100mbit",
    curves: Annotated[
        Path, typer.Option(help="Folder of the trainings; those that are there are not taken again.")
    ] = Path("runs/race"),
    rounds: Annotated[int, typer.Option(help="Rounds in which every method's steps are timed.", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory to write to; by default a new one below runs/.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Judge the targets too; exit with status 1 if one is below its floor.")
    ] = False,
) -> None:
    """Tell how long methods take over slow links to the loss that dense AdamW has at 80 % of its steps.

    Trains the transformer with each of them, on 4 workers at full speed, about an hour in all; times their steps on
    links of each rate; and multiplies. Needs root, as bench net does.
    """
    from gaussiank_lab.bench.net.links import parse_rate
    from gaussiank_lab.bench.net.race import RATES, Race
    from gaussiank_lab.bench.show import run_race

    chosen = parts(rates)
    for rate in chosen:
        parse_rate(rate)
    if check and not set(RATES) <= set(chosen):
        raise ValueError(f"rates must hold {', '.join(RATES)} with check, got {rates}. Leave the option out.")
    started = datetime.datetime.now(datetime.timezone.utc)
    out = out or Path("runs") / f"bench-race-{started:%Y%m%d-%H%M%S}"
    raise typer.Exit(run_race(Race(curves, rates=chosen, rounds=rounds, seed=seed), out, check=check))
