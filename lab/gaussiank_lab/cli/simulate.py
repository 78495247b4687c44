"""``gaussiank simulate``, and the options that it shares with ``advise``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gaussiank_lab.cluster.scenario import PRESETS

PRESET = typer.Option(help=f"Cluster to predict: {', '.join(PRESETS)}.")
PROBE = typer.Option(help="File that gaussiank probe has written, instead of a preset.")
MODEL = typer.Option(help="Model, such as resnet50 or gpt2, or a transformer's parameters (60M); a probe has its own.")
GBIT = typer.Option(help="Gigabits per second between machines, instead of the preset's.")
PER_NODE = typer.Option(help="Workers that share a machine and its link, instead of the preset's number.")
ROUND_TRIP_MS = typer.Option(help="Milliseconds from machine to machine and back (ping), instead of the preset's.")
STEP_MS = typer.Option(help="Milliseconds of one worker's step without exchange, instead of the preset's device.")


def simulate(
    preset: Annotated[str | None, PRESET] = None,
    probe: Annotated[Path | None, PROBE] = None,
    model: Annotated[str | None, MODEL] = None,
    workers: Annotated[
        str | None, typer.Option(help="Numbers of workers, separated by commas; by default 1 to 4096.")
    ] = None,
    gbit: Annotated[float | None, GBIT] = None,
    per_node: Annotated[int | None, PER_NODE] = None,
    round_trip_ms: Annotated[float | None, ROUND_TRIP_MS] = None,
    step_ms: Annotated[float | None, STEP_MS] = None,
    density: Annotated[float, typer.Option(help="Share of entries to send, in (0, 1].")] = 0.001,
    price: Annotated[float | None, typer.Option(help="Price of a worker's hour; shows the cost of an epoch.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of jitter and stragglers.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Regenerate the paper's table instead; takes no other option.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write figures and a Chrome trace of the timeline to this directory.")
    ] = None,
) -> None:
    """Predict step time, scaling, bytes and the cost of an epoch of every method on a cluster."""
    from gaussiank_lab.cluster import simulate as command
    from gaussiank_lab.cluster.scenario import resolve

    console = Console()
    if paper:
        if any((preset, probe, model, workers, gbit, per_node, round_trip_ms, step_ms, as_json, out)):
            raise ValueError("paper must stand alone, got other options beside it. It has its own setting.")
        command.show_paper(console)
        return
    command.require_price(price)
    setting = resolve(preset, probe, model, gbit, per_node, round_trip_ms, step_ms)
    counts, detailed = command.counts_of(setting, command.parse_counts(workers))
    predictions = command.run_simulation(setting, counts, density, seed)
    if as_json:
        typer.echo(command.record_text(setting, predictions, density, seed))
    else:
        command.show_simulation(console, setting, predictions, detailed, density, price)
    for path in command.write_figures(out, setting, predictions, detailed[-1], density, seed) if out else ():
        typer.echo(f"Written: {path}", err=as_json)
