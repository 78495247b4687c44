"""What a person sees of a benchmark: progress, tables, where the files are, and how it ended."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gaussiank_lab.bench.net.links import missing, parse_rate
from gaussiank_lab.bench.net.race import Race
from gaussiank_lab.bench.net.run import NetBench, NetConfig, possible
from gaussiank_lab.bench.ops import OpsBench, OpsConfig, OpsSetting, require_memory
from gaussiank_lab.bench.plots import write_net_plots, write_ops_plot
from gaussiank_lab.bench.rows import Row, RowWriter
from gaussiank_lab.bench.tables import (
    columns,
    laws_table,
    net_table,
    net_title,
    ops_table,
    ops_title,
    plain_text,
    race_table,
)
from gaussiank_lab.bench.targets import (
    NET_TARGETS,
    OPS_TARGETS,
    RACE_TARGETS,
    CheckConfig,
    Target,
    check_net,
    check_ops,
    check_race,
)
from gaussiank_lab.report.summary import MISSING

INTERRUPTED = 130  # what a shell reports after Ctrl-C


class Tick(Protocol):
    """Says what is measured now, and how much of the whole is done since the last note."""

    def __call__(self, text: str, advance: float = 0.0) -> None:
        """Show it."""


def run_ops(config: OpsConfig, out: Path) -> int:
    """Measure, write and show; returns the exit status: 0, or 130 after Ctrl-C, which keeps what was measured.

    Raises:
        ValueError: the vectors do not fit into memory.
        FileExistsError: ``out`` holds rows already.
    """
    require_memory(config)
    console = Console()

    def measure(note: Tick) -> Iterator[list[Row]]:
        def on_round(setting: OpsSetting) -> None:
            note(str(setting), 1 / (config.rounds(setting.numel) + 1))

        for rows in OpsBench(config, on_round).run():
            yield rows
            if rows[0]["law"] == config.laws[0]:
                console.print(ops_table(rows), "")
            elif not console.is_terminal:
                console.print(f"measured: {ops_title(rows[0])}", highlight=False)

    status, writer = _written(console, out, measure, config.settings)
    if status:
        done = len({ops_title(row) for row in writer.rows})
        console.print(f"Stopped: {done} of {config.settings} settings were measured and are kept.")
    if (table := laws_table(writer.rows)) is not None:
        console.print(table, "")
    _say_where(console, [writer.path, *write_ops_plot(writer.rows, out)])
    return status


def run_net(config: NetConfig, out: Path) -> int:
    """Measure, write and show; returns the exit status: 0, or 130 after Ctrl-C, which keeps what was measured.

    Raises:
        FileExistsError: ``out`` holds rows already.
        RuntimeError: a rank has failed or ended.
    """
    console = Console()
    _, refused = possible([parse_rate(name) for name in config.rates])
    if refused:
        console.print(refused, highlight=False, markup=False)
    settings = len(config.models) * len(config.rates) * len(config.workers)

    def measure(note: Tick) -> Iterator[list[Row]]:
        console.print(
            f"Measuring {len(config.methods)} methods in {settings} setting{'s' * (settings > 1)}.\n", highlight=False
        )
        for rows in NetBench(config, note).run():
            yield rows
            console.print(net_table(rows), "")

    status, writer = _written(console, out, measure)
    if status:
        done = len({net_title(row) for row in writer.rows})
        console.print(f"Stopped: {done} settings were measured and are kept.")
    _say_where(console, [writer.path, *write_net_plots(writer.rows, out)])
    return status


def run_ops_check(out: Path, *, quick: bool, seed: int) -> int:
    """Measure the operators' targets, write and show them.

    Returns:
        1 when one is below its floor, 130 after Ctrl-C, else 0.

    Raises:
        FileExistsError: ``out`` holds rows already.
    """
    config = CheckConfig(large=50_000, small=10_000, repeats=3, seed=seed) if quick else CheckConfig(seed=seed)
    console = Console()
    rounds = 6 * (config.repeats + 1)
    status = _checked(
        console, out, OPS_TARGETS, lambda note: check_ops(config, lambda: note("checking", advance=1)), rounds
    )
    if quick:
        console.print("The targets are for large vectors; --quick only tries whether the check runs.")
    return status


def run_net_check(seed: int, out: Path) -> int:
    """Measure the network benchmark's targets, write and show them; returns what ``run_ops_check`` does.

    Raises:
        FileExistsError: ``out`` holds rows already.
        RuntimeError: this machine cannot give ranks networks of their own, or a rank has failed.
    """
    if (reason := missing()) is not None:
        raise RuntimeError(f"check must have links of a given rate: {reason}.")
    return _checked(Console(), out, NET_TARGETS, lambda note: check_net(seed, note))


def run_race(race: Race, out: Path, *, check: bool) -> int:
    """Race the methods to a loss, write and show it; returns what ``run_ops_check`` does with ``check``.

    Raises:
        FileExistsError: ``out`` holds rows already.
        RuntimeError: this machine cannot give ranks networks of their own, or a rank has failed.
    """
    if (reason := missing()) is not None:
        raise RuntimeError(f"race must have links of a given rate: {reason}.")
    console = Console()

    def measure(note: Tick) -> Iterator[list[Row]]:
        noted = replace(race, on_note=note)
        yield from ([row] for row in check_race(noted)) if check else noted.run()

    status, writer = _written(console, out, measure)
    placed = [row for row in writer.rows if row["kind"] == "seconds to loss"]
    for rate in dict.fromkeys(row["rate"] for row in placed):
        console.print(race_table([row for row in placed if row["rate"] == rate]), "")
    judged = [row for row in writer.rows if row["kind"] == "check"]
    if check:
        console.print(_targets_table(RACE_TARGETS, judged))
    _say_where(console, [writer.path])
    return status or int(any(row["verdict"] == "BELOW FLOOR" for row in judged))


def _checked(
    console: Console,
    out: Path,
    targets: Mapping[str, Target],
    check: Callable[[Tick], Iterator[Row]],
    total: float | None = None,
) -> int:
    """Run a check and show its table."""
    status, writer = _written(console, out, lambda note: ([row] for row in check(note)), total)
    judged = [row for row in writer.rows if row["kind"] == "check"]
    console.print(_targets_table(targets, judged))
    _say_where(console, [writer.path])
    return status or int(any(row["verdict"] == "BELOW FLOOR" for row in judged))


def _written(
    console: Console, out: Path, measure: Callable[[Tick], Iterator[list[Row]]], total: float | None = None
) -> tuple[int, RowWriter]:
    """Write the rows as they are measured; returns 0, or 130 after Ctrl-C, and the writer."""
    with _ending_in_order(), RowWriter(out) as writer, _progress(console, total) as note:
        try:
            for rows in measure(note):
                for row in rows:
                    writer.write(row)
        except KeyboardInterrupt:
            return INTERRUPTED, writer
    return 0, writer


def _targets_table(targets: Mapping[str, Target], rows: Sequence[Row]) -> Table:
    table = columns(("what", "target", "floor", "measured", "verdict"), left=1)
    if rows:
        backend = f"backend {rows[0]['backend']}, " if "backend" in rows[0] else ""
        table.title = Text(f"{backend}{rows[0]['machine']}, {rows[0]['date'][:10]}")
        table.title_justify = "left"
    by_key = {row["key"]: row for row in rows}
    for key, target in targets.items():
        row = by_key.get(key)
        verdict = "not measured" if row is None else row["verdict"]
        measured = MISSING if row is None else _value(row["measured"], target.unit)
        limits = (_value(target.target, target.unit), _value(target.floor, target.unit))
        table.add_row(Text(target.what), *limits, measured, Text(verdict, style="bold" if "BELOW" in verdict else ""))
    return table


def _value(value: float, unit: str) -> str:
    return f"{'+' * (unit == '+%' and value >= 0)}{plain_text(value)}{'x' if unit == 'x' else ' %'}"


def _say_where(console: Console, paths: Sequence[Path]) -> None:
    for path in paths:
        console.print(f"Wrote {path}", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _progress(console: Console, total: float | None) -> Iterator[Tick]:
    """Show what is measured, on a terminal; a bar that pulses where the whole is unknown."""
    progress = Progress(
        TextColumn("{task.fields[now]}"),
        BarColumn(bar_width=24),
        TextColumn("" if total is None else "{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with progress:
        task = progress.add_task("bench", total=total, now="starting")
        yield lambda text, advance=0.0: progress.update(task, advance=advance, now=text)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, so that ranks are ended before this process is."""

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
