"""What every recipe is: a claim, the jobs it needs, and how their results become a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from gaussiank_lab.reproduce.job import Job

Scale = Literal["tiny", "small", "full"]
"""``tiny`` proves that a recipe works and nothing else; ``small`` suits 2 cores; ``full`` is the paper's setting."""

Verdict = Literal["holds", "holds with limits", "does not hold at this scale", "does not hold"]

FAR_POINTS = 10.0
"""A run that ends further below what it is compared with does not do "with limits" what is claimed of it."""


def judge(*, holds: bool, partly: bool, points_below: float = 0.0) -> Verdict:
    """Return the verdict of a criterion: it is met, met in part, or not met.

    Args:
        holds: the criterion is met.
        partly: it is met in part.
        points_below: how far, in points of accuracy, the worst run ends below what it is compared with.

    Example:
        >>> judge(holds=False, partly=True), judge(holds=False, partly=True, points_below=40.2)
        ('holds with limits', 'does not hold at this scale')
    """
    if holds or not partly:
        return "holds" if holds else "does not hold"
    return "does not hold at this scale" if points_below > FAR_POINTS else "holds with limits"


@dataclass(frozen=True)
class Drawing:
    """A figure of a page.

    Attributes:
        name: of its file.
        figure: the figure.
        caption: what it shows, in a sentence.
    """

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class ClaimOutcome:
    """What came out.

    Attributes:
        verdict: on the claim.
        because: the numbers behind it, in a sentence or two, computed from the results.
        header: of the table.
        rows: of the table.
        drawings: the figures.
        standins: what stood in for the paper's data or models, or was left out.
    """

    verdict: Verdict
    because: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    drawings: tuple[Drawing, ...] = ()
    standins: str = ""


@dataclass(frozen=True)
class Recipe:
    """One claim of the paper, or about it.

    Args:
        name: what the command line calls it.
        title: heading of its page.
        claim: what is claimed, and where.
        jobs: scale -> the training runs it needs; none for a computation.
        conclude: directory with results, scale -> the outcome.
        criterion: what decides the verdict, fixed before the results were seen.
    """

    name: str
    title: str
    claim: str
    criterion: str
    conclude: Callable[[Path, Scale], ClaimOutcome]
    jobs: Callable[[Scale], list[Job]] = field(default=lambda scale: [])
