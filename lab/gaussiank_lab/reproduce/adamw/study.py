"""Does the runs of a study that have no row yet, one after the other, and appends a row for each that ends."""

from __future__ import annotations

import datetime
import fnmatch
import functools
import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gaussiank_lab.launch import end_with, processes
from gaussiank_lab.machine import origin
from gaussiank_lab.reproduce.adamw.rules import RUNS, Run
from gaussiank_lab.reproduce.adamw.setting import StudySetting
from gaussiank_lab.reproduce.runner import span

ROWS_NAME = "rows.jsonl"
LOOKS = (0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of a run at which a quarter of the test text is read."""

Row = dict[str, Any]


def train(setting: StudySetting) -> Row:
    """Train by one setting, and return its row; nats are None where training diverged."""
    torch.set_num_threads(1)
    _origin()
    started = time.perf_counter()
    run = RUNS[setting.method](setting)
    looks = {max(1, round(share * setting.steps)) for share in LOOKS}
    curve: list[tuple[int, float]] = []
    nats: float | None = None
    for step in range(setting.steps):
        loss = run.step(step)
        if not loss < 50:
            break
        if step + 1 in looks:
            curve.append((step + 1, round(run.workers.evaluate(run.weights, 0.25), 5)))
    else:
        found = run.workers.evaluate(run.weights)
        nats = round(found, 5) if found < 50 else None
    return {**_row(setting, run, step + 1), "nats": nats, "curve": curve, **_spent(started)}


def _row(setting: StudySetting, run: Run, steps: int) -> Row:
    per = run.numel * steps
    sent = {"bits": round(run.sent_bits / per, 6), "sum_bits": round(run.sum_bits / per, 6), "messages": run.messages}
    text = {"numel": run.numel, "text": run.workers.digest[:12]}
    return {"key": setting.key, **asdict(setting), **text, **sent, **_origin()}


def _spent(started: float) -> Row:
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"seconds": round(time.perf_counter() - started), "date": now.isoformat(timespec="seconds")}


@functools.cache
def _origin() -> Row:
    """Return machine, commit and versions as they were when this process began."""
    return {name: value for name, value in origin().items() if name not in ("load", "system", "date")}


def read_rows(path: Path) -> dict[str, Row]:
    """Return the rows of a file by their keys; a last line that was cut by a kill is left out.

    Raises:
        ValueError: another line is damaged.
    """
    rows: dict[str, Row] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows[row["key"]] = row
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path} must hold a row on each line, got another thing on {number}. Mend it.") from error
    return rows


def append_row(path: Path, row: Row) -> None:
    """Add one row in a single write, on a line of its own even behind a line that was cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                whole = path.read_bytes()
                file.truncate(whole.rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")


def todo(settings: Iterable[StudySetting], path: Path, only: str | None = None) -> list[StudySetting]:
    """Return the settings without a row whose key fits a pattern (``*`` for anything; part of a key is enough)."""
    done = read_rows(path)
    pattern = f"*{only or ''}*"
    unique = {setting.key: setting for setting in settings}
    return [one for key, one in unique.items() if key not in done and fnmatch.fnmatchcase(key, pattern)]


def run_study(
    settings: Sequence[StudySetting],
    path: Path,
    console: Console,
    *,
    jobs: int = 1,
    only: str | None = None,
    budget_minutes: float | None = None,
) -> int:
    """Do the runs that have no row yet, in their order; a kill loses the runs under way alone.

    Args:
        settings: all runs of the study.
        path: file of the rows.
        console: where progress is shown.
        jobs: processes, each of one thread.
        only: do those alone whose key holds this pattern.
        budget_minutes: begin no run after so many.

    Returns:
        How many were done.
    """
    wanted = todo(settings, path, only)
    console.print(f"{len(wanted)} runs to do, {len(read_rows(path))} rows are there.", highlight=False)
    started, done = time.perf_counter(), 0
    with ProcessPoolExecutor(jobs, mp_context=processes(), initializer=end_with, initargs=(os.getpid(),)) as pool:
        queue = iter(wanted)
        under_way: set[Future[Row]] = set()
        while True:
            spent = (time.perf_counter() - started) / 60
            while len(under_way) < jobs and (budget_minutes is None or spent < budget_minutes):
                setting = next(queue, None)
                if setting is None:
                    break
                under_way.add(pool.submit(train, setting))
            if not under_way:
                return done
            ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in ended:
                row = future.result()
                append_row(path, row)
                done += 1
                nats = "diverged" if row["nats"] is None else f"{row['nats']:.4f} nats"
                line = f"{done} of {len(wanted)}, {span(60 * spent)}: {row['key']}: {nats}, {row['bits']:.4f} bits"
                console.print(line, highlight=False, markup=False, soft_wrap=True)
