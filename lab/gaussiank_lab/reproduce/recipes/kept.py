"""What the paper does not show: how many entries the published Gaussian_k keeps under error feedback."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gaussiank_lab.reproduce.drawing import band_figure
from gaussiank_lab.reproduce.job import complete
from gaussiank_lab.reproduce.recipe import ClaimOutcome, Drawing, Recipe, Scale, judge
from gaussiank_lab.reproduce.recipes.sensitivity import jobs
from gaussiank_lab.reproduce.settings import standins
from gaussiank_lab.reproduce.training import PUBLISHED, kept_curve, models_of, of_model

METHODS = ("topk", "gaussiank", PUBLISHED)
DENSITIES = (0.001, 0.01)


def conclude(out: Path, scale: Scale) -> ClaimOutcome:
    """Look at kept/k in the last half of each run."""
    rows, drawings = [], []
    steady: dict[str, list[float]] = {method: [] for method in METHODS}
    every = complete(jobs(scale), out)
    for model in models_of(every):
        for density in DENSITIES:
            mine = [job for job in of_model(every, model) if job.config.density == density]
            curves = {method: kept_curve(out, mine, method) for method in METHODS}
            cells = []
            for method, (_, seeds) in curves.items():
                late = [float(np.mean(seed[seed.size // 2 :])) for seed in seeds]
                steady[method] += late
                cells.append(f"{np.mean(late):.3g} ({min(late):.3g}–{max(late):.3g})")
            rows.append((model, f"{density:g}", *cells))
            figure = band_figure(curves, "step", "kept / k", log_y=True)
            caption = f"{model} at density {density:g}: entries kept over entries asked for. Zeros have no point."
            drawings.append(Drawing(f"{model}-{density:g}", figure, caption))
    inside = [2 / 3 <= value <= 4 / 3 for value in steady[PUBLISHED]]
    verdict = judge(holds=all(inside), partly=any(inside))
    because = (
        f"In the last half of training the published loop is within its band of 2/3 to 4/3 in {sum(inside)} of "
        f"{len(inside)} runs: it keeps {min(steady[PUBLISHED]):.3g} to {max(steady[PUBLISHED]):.3g} of k. The "
        "bracketed "
        f"search keeps {min(steady['gaussiank']):.2f} to {max(steady['gaussiank']):.2f}, exact Top_k 1."
    )
    header = ("model", "density", *(f"kept/k, {method}" for method in METHODS))
    return ClaimOutcome(verdict, because, header, tuple(rows), tuple(drawings), standins(scale, models_of(every)))


KEPT = Recipe(
    name="kept",
    title="Gaussian_k keeps about k entries under error feedback",
    claim="A normal threshold with up to four corrections keeps between 2k/3 and 4k/3 entries. The paper shows it for "
    "single vectors; here it is looked at under error feedback, without the density warm-up of the published code.",
    criterion="Holds if the mean of kept/k over the last half of training is within 2/3 to 4/3 in every run; with "
    "limits "
    "if in some.",
    conclude=conclude,
    jobs=jobs,
)
