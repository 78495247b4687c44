"""What the paper does not show: what the density warm-up of the published code does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gaussiank_lab.reproduce.drawing import band_figure
from gaussiank_lab.reproduce.job import Job, complete
from gaussiank_lab.reproduce.recipe import ClaimOutcome, Drawing, Recipe, Scale, judge
from gaussiank_lab.reproduce.settings import standins
from gaussiank_lab.reproduce.training import (
    FAST_MODELS,
    PUBLISHED,
    WARMUPS,
    accuracies,
    kept_curve,
    main_jobs,
    models_of,
    of_model,
    ranged,
    spread,
    warmup_jobs,
)

METHODS = ("topk", PUBLISHED)


def jobs(scale: Scale) -> list[Job]:
    """Return the runs with and without warm-up."""
    return [*(job for job in main_jobs(scale) if job.config.model in FAST_MODELS), *warmup_jobs(scale)]


def conclude(out: Path, scale: Scale) -> ClaimOutcome:
    """Compare accuracies and kept/k over warm-ups."""
    rows, drawings, gains, late = [], [], [], []
    every = complete(jobs(scale), out)
    for model in models_of(every):
        curves, found = {}, {}
        for warmup in WARMUPS:
            mine = [job for job in of_model(every, model) if job.config.warmup == warmup]
            found[warmup] = {method: accuracies(out, mine, method) for method in METHODS}
            curves[warmup] = kept_curve(out, mine, PUBLISHED)
            rows.append((model, warmup, *(spread(found[warmup][method]) for method in METHODS)))
            if warmup != "none":
                late += [float(np.mean(seed[-seed.size // 4 :])) for seed in curves[warmup][1]]
        gains.append(float(np.mean(found["published"][PUBLISHED]) - np.mean(found["none"][PUBLISHED])))
        figure = band_figure(curves, "step", "kept / k of the published Gaussian_k", log_y=True)
        caption = f"{model}: entries kept over entries asked for, by warm-up. Zeros have no point."
        drawings.append(Drawing(model, figure, caption))
    cured = [2 / 3 <= value <= 4 / 3 for value in late]
    verdict = judge(holds=all(cured) and min(gains) > 0, partly=max(gains) > 0)
    because = (
        "The published warm-up changes the accuracy of the published Gaussian_k by "
        f"{ranged(gains, '+.1f')} points, over models. In the last quarter of training, long after a warm-up, its "
        f"count is in the band in {sum(cured)} of {len(cured)} runs."
    )
    header = ("model", "warm-up", *(f"final accuracy, {method}, %" for method in METHODS))
    return ClaimOutcome(verdict, because, header, tuple(rows), tuple(drawings), standins(scale, models_of(every)))


WARMUP = Recipe(
    name="warmup",
    title="The density warm-up makes Gaussian_k work",
    claim="The published code, not the paper, starts at densities 0.015625 and 0.004. Does that cure its counts?",
    criterion="Holds if it raises the accuracy of the published Gaussian_k on every model and its count is in the band "
    "of 2/3 to 4/3 in the last quarter of every run; with limits if it raises the accuracy somewhere.",
    conclude=conclude,
    jobs=jobs,
)
