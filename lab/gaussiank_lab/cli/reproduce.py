"""``gaussiank reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console


def reproduce(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...|all]", help="Recipes or studies; all for every recipe.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes with what they test, and exit.")] = False,
    scale: Annotated[
        str, typer.Option(help="small (for 2 cores), full (the paper's setting) or tiny (a test).")
    ] = "small",
    out: Annotated[Path | None, typer.Option(help="Directory of the results (runs/reproduction-SCALE).")] = None,
    train: Annotated[
        bool,
        typer.Option("--train/--no-train", help="With --no-train, judge the claims over the runs that are finished."),
    ] = True,
    pages: Annotated[Path | None, typer.Option(help="Also write a page for each recipe to this directory.")] = None,
    jobs: Annotated[int, typer.Option(help="For studies: number of processes at once.")] = 1,
    only: Annotated[
        str | None, typer.Option(help="For studies: only runs whose setting contains this pattern.")
    ] = None,
    budget_minutes: Annotated[
        float | None, typer.Option(help="For studies: start no run after so many minutes.")
    ] = None,
) -> None:
    """Regenerate figures and tables of the paper, with a verdict on each claim; or our studies of AdamW.

    Training runs that recipes share are done once. After an interruption, run the command again; finished runs are
    kept. The studies sparse-adamw and local-steps append rows to results/adamw, and write tables and figures there.
    """
    if names and _study(names, out, jobs, only, budget_minutes, train=train):
        return
    from gaussiank_lab.reproduce.pages import write_pages
    from gaussiank_lab.reproduce.recipe import Scale
    from gaussiank_lab.reproduce.recipes import RECIPES
    from gaussiank_lab.reproduce.runner import reproduce as run

    console = Console()
    if scale not in get_args(Scale):
        raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}, got {scale!r}. Choose one of them.")
    chosen: Any = scale
    place = out or Path("runs") / f"reproduction-{scale}"
    if list_:
        for recipe in RECIPES.values():
            count = f"{len(recipe.jobs(chosen))} training runs" if recipe.jobs(chosen) else "no training"
            console.print(f"{recipe.name}: {recipe.title} ({count})", highlight=False, markup=False)
    else:
        if not names:
            raise ValueError("names must name a recipe, got none. Give all, or one that --list shows.")
        wanted = list(RECIPES) if names == ["all"] else names
        unknown = [name for name in wanted if name not in RECIPES]
        if unknown:
            raise ValueError(f"names must be all or among {', '.join(RECIPES)}, got {unknown[0]!r}. Correct it.")
        run([RECIPES[name] for name in wanted], chosen, place, console, train=train)
    if pages is not None:
        console.print(f"Pages: {write_pages(list(RECIPES.values()), place, pages)}", soft_wrap=True, highlight=False)


def _study(
    names: list[str], out: Path | None, jobs: int, only: str | None, budget_minutes: float | None, *, train: bool
) -> bool:
    """Do the studies that are named, if they are; tells whether they were."""
    from gaussiank_lab.reproduce.adamw.lines import STUDIES

    named = [name for name in names if name in STUDIES]
    if not named:
        return False
    if len(named) < len(names):
        other = next(name for name in names if name not in STUDIES)
        raise ValueError(f"names must be recipes or studies, got {named[0]} and {other}. Give one kind at a time.")
    from gaussiank_lab.reproduce.adamw.lines import settings_of
    from gaussiank_lab.reproduce.adamw.page import write_page
    from gaussiank_lab.reproduce.adamw.study import ROWS_NAME, run_study

    console, path = Console(), (out or Path("results") / "adamw") / ROWS_NAME
    if train:
        run_study(settings_of(named), path, console, jobs=jobs, only=only, budget_minutes=budget_minutes)
    console.print(f"Page: {write_page(path)}", soft_wrap=True, highlight=False)
    return True
