"""``gaussiank bench net``."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gaussiank_lab.cli.command import parts, whole_numbers


def net(
    models: Annotated[
        str | None, typer.Option(help="Models of the lab, alexnet-small, or vector:N for the exchange alone (lenet5).")
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(help="Such as 20mbit,1gbit,unshaped,loopback; all but loopback need root (100mbit,loopback)."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="ddp, ddp-fp16, ddp-bf16, ddp-powersgd, paper-topk, paper-dgc, paper-gaussiank, and ours: "
            "compressor/collective/wire, such as topk/split; adamrows; local and diloco (ddp,ddp-bf16,topk)."
        ),
    ] = None,
    workers: Annotated[str | None, typer.Option(help="Numbers of ranks (4).")] = None,
    density: Annotated[float | None, typer.Option(help="Share of the entries to send (0.001).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per rank and step (8).")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds in which every method takes its turn (3).")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Largest number of measured steps per method and round (10).")
    ] = None,
    budget_s: Annotated[
        float | None, typer.Option(help="Seconds for the steps of one method in one round (5).")
    ] = None,
    together: Annotated[
        bool,
        typer.Option("--together", help="Keep all methods set up and take turns: closer pairs, more memory."),
    ] = False,
    until_loss: Annotated[
        float | None,
        typer.Option(help="Train each method once until its loss is below this, for at most --steps steps."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, data and vectors.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory to write to; by default a new one below runs/.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Measure the targets instead; exit with status 1 if one is below its floor.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Trial run: 2 workers, one round of 3 steps.")] = False,
) -> None:
    """Benchmark training steps over rate-limited links: plain DDP, torch's hooks, our methods, the paper's.

    Each rank gets a network namespace of its own, behind a bridge and two token buckets; they are removed however the
    run ends. Separate list items with commas. Writes rows.jsonl and plots. Ctrl-C keeps what was measured.
    """
    from gaussiank_lab.bench.net.run import NetConfig
    from gaussiank_lab.bench.show import run_net, run_net_check

    given: dict[str, Any] = {
        "models": models and parts(models),
        "rates": rates and parts(rates),
        "methods": methods and parts(methods),
        "workers": workers and whole_numbers("workers", workers),
        "density": density,
        "batch_size": batch_size,
        "rounds": rounds,
        "steps": steps,
        "budget_s": budget_s,
        "together": together or None,
        "until_loss": until_loss,
    }
    given = {name: value for name, value in given.items() if value is not None}
    started = datetime.datetime.now(datetime.timezone.utc)
    out = out or Path("runs") / f"bench-net-{started:%Y%m%d-%H%M%S}"
    if check:
        if given or quick:
            given = {**given, **({"quick": True} if quick else {})}
            raise ValueError(f"check must come without {', '.join(given)}: the targets are fixed. Leave them out.")
        raise typer.Exit(run_net_check(seed, out))
    trial: dict[str, Any] = {"workers": (2,), "rounds": 1, "steps": 3} if quick else {}
    raise typer.Exit(run_net(NetConfig(seed=seed, **(trial | given)), out))
