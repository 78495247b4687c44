"""``gaussiank bench ops``."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gaussiank_lab.cli.command import numbers, parts, whole_numbers


def ops(
    sizes: Annotated[str | None, typer.Option(help="Lengths of the vectors, up to 1e8 and more (1e5,1e6,1e7).")] = None,
    densities: Annotated[str | None, typer.Option(help="Shares of the entries to send (0.001,0.01).")] = None,
    laws: Annotated[
        str | None,
        typer.Option(help="Distributions: normal, laplace, student-t3, uniform, triangular, residual (all)."),
    ] = None,
    operators: Annotated[str | None, typer.Option(help="Our compressors and the peers to compare with (all).")] = None,
    backends: Annotated[str | None, typer.Option(help="Backends of our operators (all).")] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Measurements of each; three times as many up to 1e6 entries (9).")
    ] = None,
    budget_s: Annotated[
        float | None, typer.Option(help="Skip an operator that needs more seconds than this for all its repeats (20).")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Number of threads (torch's own).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the vectors.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory to write to; by default a new one below runs/.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Trial run: 1e4 and 1e5 entries, normal and residual, 3 repeats.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Measure the targets instead; exit with status 1 if one is below its floor.")
    ] = False,
) -> None:
    """Time every selection operator against the speed of this machine's memory.

    Separate list items with commas. Writes rows.jsonl and the plot operator_time. Ctrl-C keeps what was measured.
    """
    from gaussiank_lab.bench.ops import OpsConfig
    from gaussiank_lab.bench.show import run_ops, run_ops_check

    given: dict[str, Any] = {
        "sizes": sizes and whole_numbers("sizes", sizes),
        "densities": densities and numbers("densities", densities),
        "laws": laws and parts(laws),
        "names": operators and parts(operators),
        "backends": backends and parts(backends),
        "repeats": repeats,
        "budget_s": budget_s,
        "threads": threads,
    }
    given = {name: value for name, value in given.items() if value is not None}
    started = datetime.datetime.now(datetime.timezone.utc)
    out = out or Path("runs") / f"bench-ops-{started:%Y%m%d-%H%M%S}"
    if check:
        if given:
            raise ValueError(f"check must come without {', '.join(given)}: the targets are fixed. Leave them out.")
        raise typer.Exit(run_ops_check(out, quick=quick, seed=seed))
    trial: dict[str, Any] = {"sizes": (10_000, 100_000), "laws": ("normal", "residual"), "repeats": 3} if quick else {}
    raise typer.Exit(run_ops(OpsConfig(seed=seed, **(trial | given)), out))
