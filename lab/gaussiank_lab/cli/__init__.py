"""The command line: one file for each command, listed here."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

import gaussiank
from gaussiank_lab.cli.advise import advise
from gaussiank_lab.cli.analyze import analyze
from gaussiank_lab.cli.bench_net import net
from gaussiank_lab.cli.bench_ops import ops
from gaussiank_lab.cli.bench_predict import predict
from gaussiank_lab.cli.bench_race import race
from gaussiank_lab.cli.command import Commands
from gaussiank_lab.cli.data import data
from gaussiank_lab.cli.gpu_check import gpu_check
from gaussiank_lab.cli.probe import probe
from gaussiank_lab.cli.replay import replay
from gaussiank_lab.cli.report import report
from gaussiank_lab.cli.reproduce import reproduce
from gaussiank_lab.cli.simulate import simulate
from gaussiank_lab.cli.train import train
from gaussiank_lab.outputs import STANDARD_OUTPUT, leave, steady_output

app = Commands(
    name="gaussiank",
    help="Gradient sparsification for PyTorch: train with it and measure what it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench = Commands(
    name="bench",
    help="Run benchmarks here; write rows, a table and a plot.",
    no_args_is_help=True,
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
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.add(folders=("out", "checkpoint_dir"))(train)
app.add()(data)
app.add(folders=("figures",), files=("out",))(report)
app.add()(analyze)
app.add()(replay)
app.add(folders=("out", "pages"))(reproduce)
app.add(folders=("out",))(simulate)
app.add(files=("apply",))(advise)
app.add(files=("out",))(probe)
app.add("gpu-check", folders=("out",))(gpu_check)
bench.add(folders=("out",))(ops)
bench.add(folders=("out",))(net)
bench.add()(predict)
bench.add(folders=("out", "curves"))(race)


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
