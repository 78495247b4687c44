"""The command group ``gaussiank bench``; each benchmark adds one command to it."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from gaussiank_lab.bench.net.cli import net_command, predict_command
from gaussiank_lab.commands import Commands

bench = Commands(
    name="bench",
    help="Measure on this machine, and write rows, a table and a plot.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@bench.callback()
def _group() -> None:
    """Measure on this machine, and write rows, a table and a plot."""  # with a callback, one command is a group


def ops_command(
    sizes: Annotated[str | None, typer.Option(help="Entries of the vectors, up to 1e8 and more (1e5,1e6,1e7).")] = None,
    densities: Annotated[str | None, typer.Option(help="Shares to send (0.001,0.01).")] = None,
    laws: Annotated[
        str | None, typer.Option(help="Of normal, laplace, student-t3, uniform, triangular, residual (all).")
    ] = None,
    operators: Annotated[str | None, typer.Option(help="Compressors and peers (all).")] = None,
    backends: Annotated[str | None, typer.Option(help="Backends for our operators (all).")] = None,
    repeats: Annotated[int | None, typer.Option(help="Measurements of each, thrice as many up to 1e6 (9).")] = None,
    budget_s: Annotated[
        float | None, typer.Option(help="Skip what needs more seconds than this for all repeats (20).")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads (torch's own number).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the vectors.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory to write; a new one below runs/ if not given.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A trial: 1e4,1e5, normal and residual, 3 repeats.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Measure what is promised instead; exit with 1 below a floor.")
    ] = False,
) -> None:
    """Time every selection operator against the speed of this machine's memory.

    Lists go by comma. Writes rows.jsonl and the plot operator_time. Ctrl-C keeps what was measured so far.
    """
    from gaussiank_lab.bench.ops import OpsConfig
    from gaussiank_lab.bench.show import run_ops, run_ops_check

    given: dict[str, Any] = {
        "sizes": None if sizes is None else tuple(int(_number("sizes", text)) for text in _parts(sizes)),
        "densities": None if densities is None else tuple(_number("densities", text) for text in _parts(densities)),
        "laws": None if laws is None else _parts(laws),
        "names": None if operators is None else _parts(operators),
        "backends": None if backends is None else _parts(backends),
        "repeats": repeats,
        "budget_s": budget_s,
        "threads": threads,
    }
    given = {name: value for name, value in given.items() if value is not None}
    started = datetime.datetime.now(datetime.timezone.utc)
    out = out or Path("runs") / f"bench-ops-{started:%Y%m%d-%H%M%S}"
    if check:
        if given:
            raise ValueError(f"check must come without {', '.join(given)}: what is promised is fixed. Leave them out.")
        raise typer.Exit(run_ops_check(out, quick=quick, seed=seed))
    trial: dict[str, Any] = {"sizes": (10_000, 100_000), "laws": ("normal", "residual"), "repeats": 3} if quick else {}
    raise typer.Exit(run_ops(OpsConfig(seed=seed, **(trial | given)), out))


bench.add("ops", folders=("out",))(ops_command)
bench.add("net", folders=("out",))(net_command)
bench.add("predict")(predict_command)


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
