"""The commands of the cost model: ``gaussiank simulate``, ``advise`` and ``probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gaussiank_lab.cluster.scenario import PRESETS

_PRESET = typer.Option(help=f"Cluster: {', '.join(PRESETS)}.")
_GBIT = typer.Option(help="Gigabits a second between a preset's machines, in place of its own.")
_PER_NODE = typer.Option(help="Workers that share a machine and its link, in place of the preset's.")


def simulate(
    preset: Annotated[str | None, _PRESET] = None,
    probe: Annotated[Path | None, typer.Option(help="File that gaussiank probe has written.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, such as resnet50; a probe has its own.")] = None,
    workers: Annotated[str | None, typer.Option(help="Numbers of workers, by comma; 1 to 4096 if not given.")] = None,
    gbit: Annotated[float | None, _GBIT] = None,
    per_node: Annotated[int | None, _PER_NODE] = None,
    density: Annotated[float, typer.Option(help="Share of entries to send, in (0, 1].")] = 0.001,
    price: Annotated[float | None, typer.Option(help="Of a worker's hour: shows the cost of an epoch.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of jitter and stragglers.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    paper: Annotated[bool, typer.Option("--paper", help="Regenerate the paper's table instead.")] = False,
    out: Annotated[Path | None, typer.Option(help="Directory for figures and a Chrome trace of the timeline.")] = None,
) -> None:
    """Predict what every method does on a cluster: step time, scaling, bytes, cost of an epoch."""
    from gaussiank_lab.cluster import simulate as command
    from gaussiank_lab.cluster.scenario import resolve

    console = Console()
    if paper:
        if preset or probe or model or workers or gbit or per_node or as_json or out:
            raise ValueError("paper must stand alone, got other options beside it. It has its own setting.")
        command.show_paper(console)
        return
    command.require_price(price)
    setting = resolve(preset, probe, model, gbit, per_node)
    counts, detailed = command.counts_of(setting, command.parse_counts(workers))
    predictions = command.run_simulation(setting, counts, density, seed)
    if as_json:
        typer.echo(command.record_text(setting, predictions, density, seed))
    else:
        command.show_simulation(console, setting, predictions, detailed, density, price)
    for path in command.write_figures(out, setting, predictions, detailed[-1], density, seed) if out else ():
        typer.echo(f"Written: {path}", err=as_json)


def advise(
    preset: Annotated[str | None, _PRESET] = None,
    probe: Annotated[Path | None, typer.Option(help="File that gaussiank probe has written.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, such as resnet50; a probe has its own.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of workers; the preset's or the probe's if not given.")
    ] = None,
    gbit: Annotated[float | None, _GBIT] = None,
    per_node: Annotated[int | None, _PER_NODE] = None,
    density: Annotated[float | None, typer.Option(help="The only density to consider.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    apply: Annotated[Path | None, typer.Option(help="Write the settings to this file, for train --config.")] = None,
) -> None:
    """Say whether to compress on a cluster, with which method, density, codec and collective, and why."""
    from gaussiank_lab.cluster import advise as command
    from gaussiank_lab.cluster.advice import advise as consider
    from gaussiank_lab.cluster.scenario import resolve

    setting = resolve(preset, probe, model, gbit, per_node)
    count = setting.workers if workers is None else workers
    advice = consider(setting, count, density)
    if as_json:
        typer.echo(command.advice_text(setting, count, advice))
    else:
        command.show_advice(Console(), setting, count, advice)
    if apply is not None:
        said = command.apply_advice(apply, setting, count, advice)
        typer.echo(f"Written: {apply}\n{said}", err=as_json)


def probe(
    model: Annotated[str, typer.Option(help="Model to measure.")] = "lenet5",
    batch_size: Annotated[int, typer.Option(help="Examples for each worker and step.")] = 32,
    workers: Annotated[
        int | None, typer.Option(help="Local processes to start (4); under torchrun, its number is taken.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer runs, smaller sizes: a first look.")] = False,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("probe.json"),
) -> None:
    """Measure this machine or, under torchrun, this cluster: links, the model's buckets, selection, codec.

    Takes about half a minute for a small model. The file is what simulate and advise take with --probe.
    """
    from gaussiank_lab.cluster.probe import QUICK, Effort, require_measurable, run_probe
    from gaussiank_lab.launch import launch, world_size

    count = world_size(workers)
    require_measurable(model, batch_size, count, device)
    launch(run_probe, count, model, batch_size, device, out, QUICK if quick else Effort())
