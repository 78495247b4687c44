"""What a person sees of the network benchmark: progress, tables, where the files are, and how it ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gaussiank_lab.bench.opstable import plain_text
from gaussiank_lab.bench.rows import Row, RowWriter
from gaussiank_lab.report.summary import MISSING, UNDERLINED

from .netcheck import PROMISES, check
from .netplot import write_plots
from .netrun import NetBench, NetConfig, possible
from .nettable import setting_table, setting_title
from .rates import parse_rate
from .wires import missing

INTERRUPTED = 130  # what a shell reports after Ctrl-C


def run_net(config: NetConfig, out: Path) -> int:
    """Measure, write and show; returns the exit status: 0, or 130 after Ctrl-C, which keeps what was measured.

    Raises:
        FileExistsError: ``out`` holds rows already.
        RuntimeError: a rank has failed or ended.
    """
    console, status = Console(), 0
    say_refused(console, config.rates)
    with ending_in_order(), RowWriter(out) as writer, console.status("starting") as shown:
        settings = len(config.models) * len(config.rates) * len(config.workers)
        console.print(
            f"Measuring {len(config.methods)} methods in {settings} setting{'s' * (settings > 1)}.\n", highlight=False
        )
        try:
            for rows in NetBench(config, shown.update).run():
                for row in rows:
                    writer.write(row)
                console.print(setting_table(rows), "")
        except KeyboardInterrupt:
            status = INTERRUPTED
            done = len({setting_title(row) for row in writer.rows})
            console.print(f"Stopped: {done} settings were measured and are kept.")
    for path in [writer.path, *write_plots(writer.rows, out)]:
        console.print(f"Wrote {path}", soft_wrap=True, highlight=False, markup=False)
    return status


def run_check(seed: int, out: Path) -> int:
    """Measure the promises, write and show them; returns 1 when one is below its floor, 130 after Ctrl-C, else 0.

    Raises:
        FileExistsError: ``out`` holds rows already.
        RuntimeError: this machine cannot give ranks networks of their own, or a rank has failed.
    """
    if (reason := missing()) is not None:
        raise RuntimeError(f"check must have links of a given rate: {reason}.")
    console, status = Console(), 0
    with ending_in_order(), RowWriter(out) as writer, console.status("starting") as shown:
        try:
            for row in check(seed, shown.update):
                writer.write(row)
        except KeyboardInterrupt:
            status = INTERRUPTED
    judged = [row for row in writer.rows if row["kind"] == "check"]
    console.print(_check_table(judged))
    console.print(f"Wrote {writer.path}", soft_wrap=True, highlight=False, markup=False)
    return status or int(any(row["verdict"] == "BELOW FLOOR" for row in judged))


def _check_table(rows: list[Row]) -> Table:
    table = Table(box=UNDERLINED, show_edge=False, padding=0, header_style="bold")
    table.add_column("what", overflow="fold")
    for header in ("target", "floor", "measured"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    by_key = {row["key"]: row for row in rows}
    for key, promise in PROMISES.items():
        row = by_key.get(key)
        measured = MISSING if row is None else _value(row["measured"], promise.unit)
        verdict = "not measured" if row is None else row["verdict"]
        style = "bold" if "BELOW" in verdict else ""
        limits = (_value(promise.target, promise.unit), _value(promise.floor, promise.unit))
        table.add_row(Text(promise.what), *limits, measured, Text(verdict, style=style))
    return table


def _value(value: float, unit: str) -> str:
    return f"{'+' * (unit == '+%' and value >= 0)}{plain_text(value)}{'x' if unit == 'x' else ' %'}"


def say_refused(console: Console, rates: tuple[str, ...]) -> None:
    """Say in one sentence which rates this machine cannot have, and why."""
    _, sentence = possible([parse_rate(name) for name in rates])
    if sentence:
        console.print(sentence, highlight=False, markup=False)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, so that the ranks are ended before this process is."""

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
