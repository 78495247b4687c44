"""The command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

import gaussiank
from gaussiank_lab import cluster_cli, reproduce_cli, study_cli
from gaussiank_lab.bench.cli import bench
from gaussiank_lab.commands import Commands
from gaussiank_lab.outputs import STANDARD_OUTPUT, leave, steady_output

app = Commands(
    name="gaussiank",
    help="Gradient sparsification for PyTorch: train with it, and see what it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(bench)


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


@app.add(folders=("out", "checkpoint_dir"))
def train(
    model: Annotated[str | None, typer.Option(help="Name of a model, or torchvision:NAME (lenet5).")] = None,
    recipe: Annotated[str | None, typer.Option(help="Settings to start from: default, or paper.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings of an earlier run instead of a recipe: its config.json or directory.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of a data set; see gaussiank data.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of your data sets.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens that a language model sees at once.")] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment/--no-augment", help="Shift and mirror training images at random.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods to compare, by comma; settings by colon: randomk:feedback=false.")
    ] = None,
    density: Annotated[float | None, typer.Option(help="Share of entries to send, in (0, 1].")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Local processes to start (4); under torchrun, its number is taken.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples for each worker and step.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None,
    eval_steps: Annotated[int | None, typer.Option(help="Steps between evaluations, instead of an epoch.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adamw.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate, its highest.")] = None,
    lr_schedule: Annotated[str | None, typer.Option(help="constant, step or cosine.")] = None,
    lr_warmup_steps: Annotated[int | None, typer.Option(help="Steps over which the learning rate rises.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum, of the optimizer or of the correction.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.")] = None,
    clip_grad: Annotated[
        float | None, typer.Option(help="Largest norm of a worker's gradient, before the exchange; 0 for none.")
    ] = None,
    clip_mean: Annotated[
        float | None, typer.Option(help="Largest norm of the mean gradient, after the exchange.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, or bf16 or fp16 under autocast.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches whose gradients are exchanged at once (1).")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of an average of the weights, evaluated beside them.")
    ] = None,
    warmup: Annotated[str | None, typer.Option(help="Start of the density: none, dense, dgc or published.")] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Length of the warm-up in steps; one epoch a stage if not given.")
    ] = None,
    momentum_correction: Annotated[
        bool | None,
        typer.Option(
            "--momentum-correction/--no-momentum-correction",
            help="Accumulate velocity (DGC), in methods with feedback.",
        ),
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Local clipping of the momentum correction.")] = None,
    scope: Annotated[str | None, typer.Option(help="Where k is counted: bucket, layer or model.")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Most bytes of a message from one worker to another.")] = None,
    collective: Annotated[
        str | None,
        typer.Option(
            help="How workers agree: allgather, split, leader, tree, hierarchical, auto, dense; or name:field=value."
        ),
    ] = None,
    wire: Annotated[
        str | None, typer.Option(help="How entries travel, index+values (rice+bf16-rice; raw+fp32 loses nothing).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation and data order.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    record: Annotated[
        int | None, typer.Option(help="Record the gradients of each method every so many steps, for analyze.")
    ] = None,
    record_vectors: Annotated[
        int | None, typer.Option(help="Keep at most so many whole vectors of --record as well, for replay.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run; a new one below runs/ if not given.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints; none without it.")] = None,
    checkpoint_dir: Annotated[
        Path | None, typer.Option(help="Directory of the checkpoints; checkpoints/ in the run's if not given.")
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Checkpoints to keep, the last ones (3).")] = None,
    checkpoint_form: Annotated[
        str | None, typer.Option(help="plain (torch.save) or dcp (torch.distributed.checkpoint).")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Checkpoint, folder of them, or run to go on with, its settings included.")
    ] = None,
    max_restarts: Annotated[int, typer.Option(help="Times that failed workers are started again.")] = 0,
    track: Annotated[
        str | None, typer.Option(help="Where records go as well, by comma: tensorboard, wandb, wandb:PROJECT.")
    ] = None,
    timeout_s: Annotated[
        float | None, typer.Option(help="Seconds after which a worker that does not answer ends the run (120).")
    ] = None,
) -> None:
    """Train one model with several methods, same seeds and data order, and compare them.

    What is not given is the recipe's. Starts the workers itself, or joins the torchrun job that it is in. Writes its
    settings, records and one HTML report.
    """
    given: dict[str, Any] = dict(locals())
    from gaussiank_lab.train.config import TrainConfig
    from gaussiank_lab.train.start import Options, start

    options = Options(**{name: given[name] for name in Options.__dataclass_fields__})
    settings = {name: given[name] for name in TrainConfig.__dataclass_fields__ if given.get(name) is not None}
    if methods is not None:
        settings["methods"] = tuple(method.strip() for method in methods.split(",") if method.strip())
    start(options, settings)


@app.add()
def data(
    name: Annotated[str | None, typer.Argument(help="A data set to read whole; without it, all are listed.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of your data sets.")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch it into the folder (fashion-mnist alone).")
    ] = False,
) -> None:
    """List the data sets: what is here, what is missing, and how to get it; or read one and describe it."""
    from gaussiank_lab.data_command import show_data

    show_data(Console(), name, data_dir, download)


@app.add(folders=("figures",), files=("out",))
def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories that train has written.")],
    figures: Annotated[Path | None, typer.Option(help="Directory for the figures of one run as SVG files.")] = None,
    out: Annotated[Path | None, typer.Option(help="File of the page: RUN/report.html, or comparison.html.")] = None,
) -> None:
    """Print the table of a run, and write its HTML report anew; or compare several runs on one page."""
    from gaussiank_lab.report.page import COMPARISON_NAME, read_runs, write_comparison, write_figures, write_report
    from gaussiank_lab.report.records import read_records
    from gaussiank_lab.report.summary import summary_table

    one = len(run_dirs) == 1
    if figures and not one:
        raise ValueError(f"figures must be of one run, got {len(run_dirs)} runs. Leave it out, or name one run.")
    console, records = Console(), read_records(run_dirs[0]) if one else read_runs(run_dirs)
    console.print(summary_table(records))
    for name, run in records.runs.items():
        console.print(f"{name}: {run}", soft_wrap=True, highlight=False, markup=False)
    page = write_report(run_dirs[0], out) if one else write_comparison(records, out or Path(COMPARISON_NAME))
    console.print(f"{'Report' if one else 'Comparison'}: {page}", soft_wrap=True, highlight=False)
    for path in write_figures(run_dirs[0], figures) if figures else ():
        console.print(f"Figure: {path}", soft_wrap=True, highlight=False)


app.add()(study_cli.analyze)
app.add()(study_cli.replay)
app.add(folders=("out", "pages"))(reproduce_cli.reproduce)
app.add(folders=("out",))(cluster_cli.simulate)
app.add(files=("apply",))(cluster_cli.advise)
app.add(files=("out",))(cluster_cli.probe)


def main() -> None:
    """Run the command line; a user's mistake ends it with one sentence and status 2."""
    steady_output()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except ValueError as error:
        _end(error, 2)
    except RuntimeError as error:
        _end(error, 1)
    except OSError as error:
        if error.errno is None:  # a sentence of ours: FileNotFoundError, FileExistsError
            _end(error, 2)
        where = error.filename or "every file"
        rule = "be writable" if where == STANDARD_OUTPUT else "be a usable path"
        _end(ValueError(f"{where} must {rule}, got: {error.strerror}. Give another one."), 2)


def _end(error: Exception, status: int) -> NoReturn:
    leave(str(error))
    typer.echo(f"gaussiank: {error}", err=True)
    sys.exit(status)
