"""The command group ``gaussiank bench``; each benchmark adds one command to it."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(
    name="bench",
    help="Measure on this machine, and write rows, a table and a plot.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@bench.callback()
def _group() -> None:
    """Measure on this machine, and write rows, a table and a plot."""  # with a callback, one command is a group


@bench.command("ops")
def ops_command(
    sizes: Annotated[str, typer.Option(help="Entries of the vectors, by comma; up to 1e8 and more.")] = "1e5,1e6,1e7",
    densities: Annotated[str, typer.Option(help="Shares to send, by comma.")] = "0.001,0.01",
    laws: Annotated[str, typer.Option(help="Laws of the vectors, by comma; all if empty.")] = "",
    operators: Annotated[str, typer.Option(help="Operators, by comma; all if empty.")] = "",
    backends: Annotated[str, typer.Option(help="Backends for our operators, by comma; all if empty.")] = "",
    repeats: Annotated[int, typer.Option(help="Measurements of each; three times as many up to 1e6.")] = 9,
    budget_s: Annotated[float, typer.Option(help="Skip what needs more seconds than this for all repeats.")] = 20.0,
    threads: Annotated[int | None, typer.Option(help="Threads; torch's own number if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the vectors.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory to write; a new one below runs/ if not given.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two small sizes, two laws, 3 repeats: a trial.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Measure what is promised instead; exit with 1 below a floor.")
    ] = False,
) -> None:
    """Time every selection operator against the speed of this machine's memory.

    Writes rows.jsonl and the plot operator_time. Ctrl-C keeps what was measured so far.
    """
    from gaussiank.lab.bench.opsrun import OpsConfig
    from gaussiank.lab.bench.opsshow import run_check, run_ops

    started = datetime.datetime.now(datetime.timezone.utc)
    out = out or Path("runs") / f"bench-ops-{started:%Y%m%d-%H%M%S}"
    if check:
        raise typer.Exit(run_check(out, quick=quick, seed=seed))
    if quick:
        sizes, laws, repeats = "1e4,1e5", laws or "normal,residual", 3
    config = OpsConfig(
        sizes=tuple(int(_number("sizes", text)) for text in _parts(sizes)),
        densities=tuple(_number("densities", text) for text in _parts(densities)),
        names=_parts(operators),
        backends=_parts(backends),
        repeats=repeats,
        budget_s=budget_s,
        threads=threads,
        seed=seed,
        **({"laws": _parts(laws)} if laws else {}),
    )
    raise typer.Exit(run_ops(config, out))


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _number(argument: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{argument} must be numbers with commas between, got {text!r}. Correct it.")
    return value
