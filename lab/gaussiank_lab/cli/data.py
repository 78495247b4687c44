"""``gaussiank data``."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from gaussiank_lab.data import Data, DataSource


def data(
    name: Annotated[
        str | None, typer.Argument(help="Data set to read and describe; without it, all are listed.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of your own data sets.")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download it into the folder first (fashion-mnist only).")
    ] = False,
) -> None:
    """List the data sets: which are here, which are missing and how to get them; or read one and describe it."""
    show_data(Console(), name, data_dir, download)


def show_data(console: Console, name: str | None, data_dir: Path | None, download: bool) -> None:
    """List all data sets, or read one whole and describe it.

    Args:
        console: where to show it.
        name: key of ``DATASETS``, or None.
        data_dir: the user's folder of data sets, or None.
        download: fetch it first; Fashion-MNIST alone.

    Raises:
        ValueError: no such data set, nothing to download, or a damaged file.
        FileNotFoundError: it is not there.
        RuntimeError: it cannot be fetched, or is not what was released.
    """
    from gaussiank_lab.data import DATASETS

    if name is not None and name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(DATASETS)}, got {name!r}. Correct it.")
    if download:
        _download(console, name, data_dir)
    lines = _listed(data_dir) if name is None else _described(DATASETS[name], data_dir)
    for line in lines:
        console.print(_wrapped(console, line), soft_wrap=True, highlight=False, markup=False)


def _wrapped(console: Console, line: str) -> str:
    """Break a long line on a terminal, the rest below its text; what is piped stays a line."""
    if not console.is_terminal:
        return line
    rest = " " * 11 if line.startswith(" ") else ""
    return textwrap.fill(
        line, console.width - 1, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _download(console: Console, name: str | None, data_dir: Path | None) -> None:
    from gaussiank_lab.data import DATASETS
    from gaussiank_lab.data.image_files import download_fashion_mnist

    if name != "fashion-mnist":
        advice = "Give it as the name." if name is None else DATASETS[name].get
        raise ValueError(f"download must be of fashion-mnist, got {name or 'no name'}. {advice}")
    if data_dir is None:
        raise ValueError("data_dir must be given with download, got none. Add --data-dir DIR.")
    place = download_fashion_mnist(data_dir)
    console.print(f"Fetched into {place}.", soft_wrap=True, highlight=False, markup=False)


def _listed(data_dir: Path | None) -> list[str]:
    from gaussiank_lab.data import DATASETS

    lines: list[str] = []
    for task in dict.fromkeys(source.task for source in DATASETS.values()):
        lines += ["", task] if lines else [task]
        for source in (source for source in DATASETS.values() if source.task == task):
            lines += _entry(source, data_dir)
    return lines


def _entry(source: DataSource, data_dir: Path | None) -> list[str]:
    try:
        place = source.find(data_dir)
    except FileNotFoundError:
        return [f"  missing  {source.name}: {source.about}", f"           {source.get}"]
    where = "" if place.is_relative_to(Path(__file__).parents[1]) else f" ({place})"
    return [f"  here     {source.name}: {source.about}{where}"]


def _described(source: DataSource, data_dir: Path | None) -> list[str]:
    import torch

    from gaussiank_lab.data import Wanted

    found: Data = source.load(Wanted(data_dir))
    metric = found.task.metric
    for split in (found.train, found.test):  # files that are read when they are dealt are read now
        for number in range(len(split)):
            split.batch(torch.tensor([number]))
    return [
        f"{source.name}: {source.about}",
        f"  place    {source.find(data_dir)}",
        f"  train    {len(found.train):,} {found.train.unit}",
        f"  test     {len(found.test):,} {found.test.unit}",
        f"  outputs  {found.outputs:,}",
        f"  judged   by {metric.name} in {metric.unit}",
        f"  digest   {found.digest}",
    ]
