"""The command line."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import gaussiank

app = typer.Typer(
    name="gaussiank",
    help="Gradient sparsification for PyTorch: train with it, and see what it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gaussiank {gaussiank.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    model: Annotated[str, typer.Option(help="fnn3, lenet5 or resnet20.")] = "lenet5",
    dataset: Annotated[str, typer.Option(help="Data set; the subset comes with the package.")] = "fashion-mnist-subset",
    methods: Annotated[
        str, typer.Option(help="Methods to compare, by comma; settings by colon: randomk:feedback=false.")
    ] = "dense,topk,gaussiank,randomk:feedback=false",
    density: Annotated[float, typer.Option(help="Share of entries to send, in (0, 1].")] = 0.001,
    workers: Annotated[
        int | None, typer.Option(help="Local processes to start (4); under torchrun, its number is taken.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images for each worker and step.")] = 32,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 12,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.02,
    momentum: Annotated[float, typer.Option(help="Momentum, of the optimizer or of the correction.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0,
    warmup: Annotated[str, typer.Option(help="Start of the density: none, dense, dgc or published.")] = "none",
    warmup_steps: Annotated[
        int | None, typer.Option(help="Length of the warm-up in steps; one epoch a stage if not given.")
    ] = None,
    momentum_correction: Annotated[
        bool, typer.Option("--momentum-correction", help="Accumulate velocity (DGC), in methods with feedback.")
    ] = False,
    clip_norm: Annotated[float | None, typer.Option(help="Local clipping of the momentum correction.")] = None,
    scope: Annotated[str, typer.Option(help="Where k is counted: bucket, layer or model.")] = "bucket",
    max_bytes: Annotated[int | None, typer.Option(help="Largest payload of a message in bytes.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of initialisation and data order.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Directory of the run; a new one below runs/ if not given.")] = None,
) -> None:
    """Train one model with several methods, same seeds and data order, and compare them.

    Starts the workers itself, or joins the torchrun job that it is in. Writes records and one HTML report.
    """
    from gaussiank.lab.config import TrainConfig
    from gaussiank.lab.launch import launch, world_size
    from gaussiank.lab.run import require_startable, run

    given: dict[str, Any] = dict(locals())
    settings = {name: given[name] for name in TrainConfig.__dataclass_fields__ if name in given}
    settings["methods"] = tuple(method.strip() for method in methods.split(",") if method.strip())
    settings["workers"] = world_size(workers)
    config = TrainConfig(**settings)
    started = datetime.datetime.now(datetime.timezone.utc)
    run_dir = out or Path("runs") / f"{model}-{started:%Y%m%d-%H%M%S}"
    if (run_dir / "records.jsonl").exists():
        raise FileExistsError(f"out must be a directory without records, got {run_dir}. Choose another one.")
    require_startable(config)
    launch(run, config.workers, config, run_dir, "gaussiank " + shlex.join(sys.argv[1:]))


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory that train has written.")],
    figures: Annotated[Path | None, typer.Option(help="Directory for the figures as SVG files.")] = None,
) -> None:
    """Print the table of a run, and write its HTML report anew."""
    from gaussiank.lab.records import read_records
    from gaussiank.lab.report import write_figures, write_report
    from gaussiank.lab.summary import summary_table

    console = Console()
    console.print(summary_table(read_records(run_dir)))
    console.print(f"Report: {write_report(run_dir)}", soft_wrap=True, highlight=False)
    for path in write_figures(run_dir, figures) if figures else ():
        console.print(f"Figure: {path}", soft_wrap=True, highlight=False)


@app.command()
def simulate(
    preset: Annotated[str | None, typer.Option(help="Cluster, such as 10gbe-16xV100; a wrong one lists them.")] = None,
    probe: Annotated[Path | None, typer.Option(help="File that gaussiank probe has written.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, such as resnet50; a probe has its own.")] = None,
    workers: Annotated[str | None, typer.Option(help="Numbers of workers, by comma; 1 to 4096 if not given.")] = None,
    density: Annotated[float, typer.Option(help="Share of entries to send, in (0, 1].")] = 0.001,
    price: Annotated[float | None, typer.Option(help="Of a worker's hour: shows the cost of an epoch.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of jitter and stragglers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    paper: Annotated[bool, typer.Option("--paper", help="Regenerate the paper's table instead.")] = False,
    out: Annotated[Path | None, typer.Option(help="Directory for figures and a Chrome trace of the timeline.")] = None,
) -> None:
    """Predict what every method does on a cluster: step time, scaling, bytes, cost of an epoch."""
    from gaussiank.lab.cluster import simulate_command as command
    from gaussiank.lab.cluster.setting import resolve

    console = Console()
    if paper:
        if preset or probe or model or workers or as_json or out:
            raise ValueError("paper must stand alone, got other options beside it. It has its own setting.")
        command.show_paper(console)
        return
    command.require_price(price)
    setting = resolve(preset, probe, model)
    counts, detailed = command.counts_of(setting, command.parse_counts(workers))
    predictions = command.run_simulation(setting, counts, density, seed)
    if as_json:
        typer.echo(command.record_text(setting, predictions, density, seed))
    else:
        command.show_simulation(console, setting, predictions, detailed, density, price)
    for path in command.write_figures(out, setting, predictions, detailed[-1], density, seed) if out else ():
        typer.echo(f"Written: {path}", err=as_json)


@app.command()
def advise(
    preset: Annotated[str | None, typer.Option(help="Cluster, such as 10gbe-16xV100; a wrong one lists them.")] = None,
    probe: Annotated[Path | None, typer.Option(help="File that gaussiank probe has written.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, such as resnet50; a probe has its own.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of workers; the preset's or the probe's if not given.")
    ] = None,
    density: Annotated[float | None, typer.Option(help="The only density to consider.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    apply: Annotated[Path | None, typer.Option(help="Write the settings to this file, for train --config.")] = None,
) -> None:
    """Say whether to compress on a cluster, with which method, density, codec and collective, and why."""
    from gaussiank.lab.cluster import advise_command as command
    from gaussiank.lab.cluster.advice import advise as consider
    from gaussiank.lab.cluster.setting import resolve

    setting = resolve(preset, probe, model)
    count = setting.workers if workers is None else workers
    advice = consider(setting, count, density)
    if as_json:
        typer.echo(command.advice_text(setting, count, advice))
    else:
        command.show_advice(Console(), setting, count, advice)
    if apply is not None:
        left_out = command.apply_advice(apply, setting, count, advice)
        typer.echo(f"Written: {apply}", err=as_json)
        if left_out:
            typer.echo(f"This version's train has no setting for {', '.join(left_out)}.", err=True)


@app.command()
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
    from gaussiank.lab.cluster.probe_command import require_measurable, run_probe
    from gaussiank.lab.cluster.stopwatch import QUICK, Effort
    from gaussiank.lab.launch import launch, world_size

    count = world_size(workers)
    require_measurable(model, batch_size, count, device)
    launch(run_probe, count, model, batch_size, device, out, QUICK if quick else Effort())


def main() -> None:
    """Run the command line; a user's mistake ends it with one sentence and status 2."""
    try:
        app()
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        typer.echo(f"gaussiank: {error}", err=True)
        sys.exit(2)
    except RuntimeError as error:
        typer.echo(f"gaussiank: {error}", err=True)
        sys.exit(1)
