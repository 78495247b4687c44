"""What a person sees of the operator benchmark: progress, tables, where the files are, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gaussiank_lab.bench.opscheck import PROMISES, CheckConfig, check
from gaussiank_lab.bench.opsplot import write_plot
from gaussiank_lab.bench.opsrun import OpsBench, OpsConfig, Setting, require_memory
from gaussiank_lab.bench.opstable import laws_table, plain_text, setting_table, setting_title
from gaussiank_lab.bench.rows import Row, RowWriter
from gaussiank_lab.report.summary import MISSING, UNDERLINED

INTERRUPTED = 130  # what a shell reports after Ctrl-C


def run_ops(config: OpsConfig, out: Path) -> int:
    """Measure, write and show; returns the exit status: 0, or 130 after Ctrl-C, which keeps what was measured.

    Raises:
        ValueError: the vectors do not fit into memory.
        FileExistsError: ``out`` holds rows already.
    """
    require_memory(config)
    console, status = Console(), 0
    with RowWriter(out) as writer:
        try:
            with _progress(console, config.settings) as (progress, task):

                def on_round(setting: Setting) -> None:
                    progress.update(task, advance=1 / (config.rounds(setting.numel) + 1), now=str(setting))

                for rows in OpsBench(config, on_round).run():
                    for row in rows:
                        writer.write(row)
                    if rows[0]["law"] == config.laws[0]:
                        progress.console.print(setting_table(rows), "")
                    elif not console.is_terminal:
                        progress.console.print(f"measured: {setting_title(rows[0])}", highlight=False)
        except KeyboardInterrupt:
            status = INTERRUPTED
            done = len({(row["numel"], row["law"], row["density"]) for row in writer.rows})
            console.print(f"Stopped: {done} of {config.settings} settings were measured and are kept.")
    if (table := laws_table(writer.rows)) is not None:
        console.print(table, "")
    _say_where(console, [writer.path, *write_plot(writer.rows, out)])
    return status


def run_check(out: Path, *, quick: bool, seed: int) -> int:
    """Measure the promises, write and show them; returns 1 when one is below its floor, 130 after Ctrl-C, else 0.

    Raises:
        FileExistsError: ``out`` holds rows already.
    """
    config = CheckConfig(seed=seed)
    if quick:
        config = CheckConfig(large=50_000, small=10_000, repeats=3, seed=seed)
    console, status = Console(), 0
    with RowWriter(out) as writer:
        try:
            with _progress(console, 6 * (config.repeats + 1)) as (progress, task):
                for row in check(config, lambda: progress.update(task, advance=1, now="checking")):
                    writer.write(row)
        except KeyboardInterrupt:
            status = INTERRUPTED
    console.print(_check_table(writer.rows))
    if quick:
        console.print("The promises are for large vectors; --quick only tries whether the check runs.")
    _say_where(console, [writer.path])
    return status or int(any(row["verdict"] == "BELOW FLOOR" for row in writer.rows))


def _check_table(rows: list[Row]) -> Table:
    title = (
        f"backend {rows[0]['backend']}, {rows[0]['machine']}, {rows[0]['date'][:10]}" if rows else "nothing measured"
    )
    table = Table(
        title=Text(title), box=UNDERLINED, show_edge=False, padding=0, header_style="bold", title_justify="left"
    )
    table.add_column("what", overflow="fold")
    for header in ("target", "floor", "measured"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    by_key = {row["key"]: row for row in rows}
    for key, promise in PROMISES.items():
        if key not in by_key:
            limits = [_value(number, promise.unit) for number in (promise.target, promise.floor)]
            table.add_row(Text(promise.what), *limits, MISSING, "not measured")
            continue
        row = by_key[key]
        numbers = [_value(row[name], promise.unit) for name in ("target", "floor", "measured")]
        table.add_row(
            Text(promise.what), *numbers, Text(row["verdict"], style="bold" if "BELOW" in row["verdict"] else "")
        )
    return table


def _value(value: float, unit: str) -> Text:
    text = plain_text(value)
    if unit == "+%":
        return Text(f"{'+' * (value >= 0)}{text} %")
    return Text(f"{text}{' %' if unit == '%' else 'x'}")


def _say_where(console: Console, paths: list[Path]) -> None:
    for path in paths:
        console.print(f"Wrote {path}", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _progress(console: Console, total: int) -> Iterator[tuple[Progress, TaskID]]:
    progress = Progress(
        TextColumn("{task.fields[now]}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with progress:
        yield progress, progress.add_task("bench", total=total, now="drawing vectors")
