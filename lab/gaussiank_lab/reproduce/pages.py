"""Pages in Markdown: one for each recipe, with claim, command, verdict, figure and table, and an index."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gaussiank_lab.outputs import write_whole
from gaussiank_lab.reproduce.recipe import Recipe
from gaussiank_lab.reproduce.runner import read_outcome

NOT_RUN = "not run yet"

_INTRODUCTION = """# The paper, reproduced

Each page holds one claim of S. Shi, X. Chu, K. C. Cheung and S. See, "Understanding Top-k Sparsification in Distributed
Deep Learning" (2019), or about it: the command that tests it, the criterion, which was fixed before the results were
seen, and the verdict. Where the criterion is met in part, but a run ends more than 10 points below what it is compared
with, the claim "does not hold at this scale" (a rule of 2026-11-30, after the results were seen; it was "holds with
limits"). The command writes these pages:

    gaussiank reproduce all --scale small --pages results/reproduction

"""


def write_pages(recipes: Sequence[Recipe], out: Path, pages: Path) -> Path:
    """Write a page for every recipe, and the index; those without an outcome in ``out`` say so.

    Args:
        recipes: all of them.
        out: directory of the results.
        pages: directory to write to.

    Returns:
        The index.
    """
    rows = ["| claim | verdict | because | scale |", "|---|---|---|---|"]
    for recipe in recipes:
        outcome = read_outcome(out, recipe.name)
        if outcome:
            for name, _ in outcome["drawings"]:
                place = pages / recipe.name
                place.mkdir(parents=True, exist_ok=True)
                drawn = (out / "recipes" / recipe.name / f"{name}.svg").read_text(encoding="utf-8")
                write_whole(place / f"{name}.svg", compact(drawn).encode())
        write_whole(pages / f"{recipe.name}.md", page(recipe, outcome).encode())
        verdict, why, scale = (
            (outcome["verdict"], outcome["because"], outcome["scale"]) if outcome else (NOT_RUN, "–", "–")
        )
        rows.append(f"| [{recipe.title}]({recipe.name}.md) | {verdict} | {why} | {scale} |")
    return write_whole(pages / "index.md", (_INTRODUCTION + "\n".join(rows) + "\n").encode())


def compact(svg: str) -> str:
    """Shorten the names in a figure that stands alone, and round what places its parts: the same picture, smaller.

    Example:
        >>> compact('<g id="g0a1b2c3d-axes_1"><use href="#g0a1b2c3d-DejaVuSans-31" x="1.23456"/></g>')
        '<g><use href="#D31" x="1.23"/></g>'
    """
    svg = re.sub(r'<g id="g[0-9a-f]{8}-(?!DejaVu)[^"]*"', "<g", svg)
    svg = re.sub(r"\bg[0-9a-f]{8}-(DejaVuSans-)?", lambda name: "D" if name[1] else "", svg)

    def shorter(place: re.Match[str]) -> str:
        return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", place[0])

    return re.sub(r'translate\([^)]*\)| [xy]="[^"]*"', shorter, svg)


def page(recipe: Recipe, outcome: dict[str, Any] | None) -> str:
    """Return the page of one recipe."""
    scale = outcome["scale"] if outcome else "small"
    parts = [
        f"# {recipe.title}",
        f"**Claim.** {recipe.claim}",
        f"**Command.** `gaussiank reproduce {recipe.name} --scale {scale}`",
        f"**Criterion.** {recipe.criterion}",
    ]
    if outcome is None:
        return "\n\n".join([*parts, f"**Verdict: {NOT_RUN}.**"]) + "\n"
    parts.append(f"**Verdict: {outcome['verdict']}.** {outcome['because']}")
    parts += [f"![{caption}]({recipe.name}/{name}.svg)\n\n*{caption}*" for name, caption in outcome["drawings"]]
    if outcome["rows"]:
        lines = [outcome["header"], ["---"] * len(outcome["header"]), *outcome["rows"]]
        parts.append("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))
    if outcome["standins"]:
        parts.append(f"**Stand-ins.** {outcome['standins']}")
    version = f"gaussiank {outcome['gaussiank']}" + (f", commit {outcome['commit']}" if outcome["commit"] else "")
    origin = f"Scale {outcome['scale']}, {outcome['date']}, {version}, {outcome['machine']}."
    return "\n\n".join([*parts, origin]) + "\n"
