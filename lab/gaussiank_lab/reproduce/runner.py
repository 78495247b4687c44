"""Does the jobs of recipes, once each, shows how far it is, and keeps every outcome."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import gaussiank
from gaussiank_lab.machine import commit, cpu_name
from gaussiank_lab.report.plots import figure_svg
from gaussiank_lab.reproduce.job import Job, complete
from gaussiank_lab.reproduce.recipe import ClaimOutcome, Recipe, Scale
from gaussiank_lab.study.report import png, standalone

FORMAT = 2
OUTCOME_NAME = "outcome.json"


def reproduce(
    recipes: Sequence[Recipe], scale: Scale, out: Path, console: Console, *, train: bool = True
) -> list[dict[str, Any]]:
    """Do what the recipes need and is not done yet, and conclude each.

    A job that several recipes need is done once. A run that is ended can be started again: finished jobs are kept, and
    an unfinished one leaves nothing behind.

    Args:
        recipes: what to reproduce.
        scale: how large.
        out: directory of the results.
        console: where progress is shown.
        train: False does no job, concludes over the models whose jobs are all done, and leaves out recipes without any.

    Returns:
        The saved outcome of each recipe.

    Raises:
        ValueError: a job cannot be started, for want of data for example.
        RuntimeError: a worker failed.
    """
    if train:
        do_jobs(list({job.key: job for recipe in recipes for job in recipe.jobs(scale)}.values()), out, console)
    outcomes = []
    for recipe in recipes:
        wanted = recipe.jobs(scale)
        if wanted and not complete(wanted, out):
            done = sum(job.done(out) for job in wanted)
            console.print(f"{recipe.name}: not run, {done} of {len(wanted)} training runs are done", highlight=False)
            continue
        outcomes.append(save_outcome(recipe, scale, recipe.conclude(out, scale), out))
        console.print(f"{recipe.name}: {outcomes[-1]['verdict']}", highlight=False, markup=False)
    return outcomes


def do_jobs(jobs: Sequence[Job], out: Path, console: Console) -> None:
    """Do the jobs that are not done, saying before each how many there are and how long it may take."""
    todo = [job for job in jobs if not job.done(out)]
    if len(todo) < len(jobs):
        console.print(f"{len(jobs) - len(todo)} of {len(jobs)} training runs are done already.", highlight=False)
    (out / "jobs").mkdir(parents=True, exist_ok=True)
    started, done_cost = time.perf_counter(), 0.0
    for number, job in enumerate(todo, 1):
        elapsed = time.perf_counter() - started
        rest = sum(job.cost for job in todo[number - 1 :])
        left = f", about {span(elapsed / done_cost * rest)} left" if done_cost else ""
        line = f"Training run {number} of {len(todo)} ({job.key}), {span(elapsed)} so far{left}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        if not job.done(out):  # another process may have done it in the meantime
            job.do(out)
        done_cost += job.cost


def save_outcome(recipe: Recipe, scale: Scale, outcome: ClaimOutcome, out: Path) -> dict[str, Any]:
    """Write an outcome with its figures to ``OUT/recipes/NAME``: all of it, or nothing."""
    place = out / "recipes" / recipe.name
    unfinished = place.with_name(f".{recipe.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    saved = {
        "format": FORMAT,
        "name": recipe.name,
        "scale": scale,
        "verdict": outcome.verdict,
        "because": outcome.because,
        "header": list(outcome.header),
        "rows": [list(row) for row in outcome.rows],
        "drawings": [[drawing.name, drawing.caption] for drawing in outcome.drawings],
        "standins": outcome.standins,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "gaussiank": gaussiank.__version__,
        "commit": commit(),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
    }
    try:
        (unfinished / OUTCOME_NAME).write_text(json.dumps(saved, indent=1), encoding="utf-8")
        for drawing in outcome.drawings:
            (unfinished / f"{drawing.name}.svg").write_text(standalone(figure_svg(drawing.figure)), encoding="utf-8")
            (unfinished / f"{drawing.name}.png").write_bytes(png(drawing.figure))
        shutil.rmtree(place, ignore_errors=True)
        unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return saved


def read_outcome(out: Path, name: str) -> dict[str, Any] | None:
    """Read what ``save_outcome`` wrote, or None when the recipe has not been concluded there.

    Raises:
        ValueError: the file is damaged or of another version.
    """
    path = out / "recipes" / name / OUTCOME_NAME
    if not path.is_file():
        return None
    try:
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = saved["format"] == FORMAT
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise ValueError(f"{path} must be an outcome of this version, got another file. Delete its directory.")
    return saved


def span(seconds: float) -> str:
    """Write a time as a person says it.

    Example:
        >>> span(42), span(600), span(5400)
        ('42 s', '10 min', '1.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
