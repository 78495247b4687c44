"""The command ``gaussiank bench net``."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer


def net_command(
    models: Annotated[
        str | None, typer.Option(help="Models of the lab, alexnet-small, or vector:N, the exchange alone (lenet5).")
    ] = None,
    rates: Annotated[
        str | None, typer.Option(help="20mbit,1gbit,unshaped,loopback; the first three need root (100mbit,loopback).")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="ddp, ddp-fp16, ddp-bf16, ddp-powersgd, paper-topk, paper-dgc, paper-gaussiank, and ours: "
            "compressor/collective/wire, such as topk/split (ddp,ddp-bf16,topk)."
        ),
    ] = None,
    workers: Annotated[str | None, typer.Option(help="Numbers of ranks, by comma (4).")] = None,
    density: Annotated[float | None, typer.Option(help="Share of entries to send (0.001).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples for each rank and step (8).")] = None,
    rounds: Annotated[int | None, typer.Option(help="Times that all methods take their turn (3).")] = None,
    steps: Annotated[int | None, typer.Option(help="Most measured steps of a method and round (10).")] = None,
    budget_s: Annotated[float | None, typer.Option(help="Seconds for the steps of a method and round (5).")] = None,
    together: Annotated[
        bool,
        typer.Option("--together", help="Set each method up once, keep all, take turns: closer pairs, more memory."),
    ] = False,
    until_loss: Annotated[
        float | None, typer.Option(help="Train each method once until its loss is below, at most --steps steps.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, data and vectors.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory to write; a new one below runs/ if not given.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Measure what is promised instead; exit with 1 below a floor.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A trial: 2 workers, one round of 3 steps.")] = False,
) -> None:
    """Time training steps over links of a given rate: DDP, its hooks, every method of ours, the paper's way.

    Each rank gets a network namespace of its own, behind a bridge and two token buckets. Nothing is left behind,
    however a run ends. Lists go by comma. Writes rows.jsonl and plots. Ctrl-C keeps what was measured so far.
    """
    from gaussiank_lab.bench.net.run import NetConfig
    from gaussiank_lab.bench.show import run_net, run_net_check

    given: dict[str, Any] = {
        "models": None if models is None else _parts(models),
        "rates": None if rates is None else _parts(rates),
        "methods": None if methods is None else _parts(methods),
        "workers": None if workers is None else tuple(_whole(part) for part in _parts(workers)),
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
            raise ValueError(f"check must come without {', '.join(given)}: what is promised is fixed. Leave them out.")
        raise typer.Exit(run_net_check(seed, out))
    trial: dict[str, Any] = {"workers": (2,), "rounds": 1, "steps": 3} if quick else {}
    raise typer.Exit(run_net(NetConfig(seed=seed, **(trial | given)), out))


def predict_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory that bench net has written.")],
) -> None:
    """Compare the cost model with a run of the network lab: fitted on half of its settings, judged on the rest.

    Computing is taken from the run without exchange; DDP, its 16-bit hooks, and ours with allgather, split and
    leader are predicted. Needs models, not vectors.
    """
    from rich.console import Console

    from gaussiank_lab.bench.net.predict import show_predictions

    show_predictions(run, Console())


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"workers must be whole numbers with commas between, got {text!r}. Correct it.") from None
