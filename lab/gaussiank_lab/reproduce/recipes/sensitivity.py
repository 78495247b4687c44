"""How accuracy depends on the density."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gaussiank_lab.reproduce.drawing import band_figure
from gaussiank_lab.reproduce.job import Job, complete
from gaussiank_lab.reproduce.recipe import ClaimOutcome, Drawing, Recipe, Scale, judge
from gaussiank_lab.reproduce.settings import standins
from gaussiank_lab.reproduce.training import (
    FAST_MODELS,
    SENSITIVE_DENSITIES,
    SENSITIVE_METHODS,
    accuracies,
    density_jobs,
    main_jobs,
    models_of,
    of_model,
    ranged,
    spread,
)


def jobs(scale: Scale) -> list[Job]:
    """Return the runs at all three densities."""
    return [*(job for job in main_jobs(scale) if job.config.model in FAST_MODELS), *density_jobs(scale)]


def conclude(out: Path, scale: Scale) -> ClaimOutcome:
    """Compare final accuracies over densities."""
    rows, drawings, gaps = [], [], []
    every = complete(jobs(scale), out)
    for model in models_of(every):
        curves = {}
        for method in SENSITIVE_METHODS:
            found = []
            for density in SENSITIVE_DENSITIES:
                mine = [job for job in of_model(every, model) if job.config.density == density]
                found.append(accuracies(out, mine, method))
            curves[method] = np.array(SENSITIVE_DENSITIES), [np.array(seed) for seed in zip(*found, strict=True)]
            rows.append((model, method, *map(spread, found)))
        table = {method: np.mean(curves[method][1], axis=0) for method in ("dense", "gaussiank")}
        gaps += list(table["dense"] - table["gaussiank"])
        figure = band_figure(curves, "density", "final test accuracy (%)", log_x="")
        drawings.append(
            Drawing(model, figure, f"{model}: final accuracy over density; dense sends all, whatever it is.")
        )
    verdict = judge(holds=max(gaps) <= 2, partly=min(gaps) <= 2, points_below=max(gaps))
    because = f"GaussianK-SGD (bracketed) ends {ranged(gaps)} points below Dense-SGD, over models."
    header = ("model", "method", *(f"accuracy at {density:g}, %" for density in SENSITIVE_DENSITIES))
    return ClaimOutcome(verdict, because, header, tuple(rows), tuple(drawings), standins(scale, models_of(every)))


SENSITIVITY = Recipe(
    name="sensitivity",
    title="Accuracy does not depend much on the density",
    claim="GaussianK-SGD reaches nearly the accuracy of Dense-SGD at densities 0.001, 0.005 and 0.01.",
    criterion="Holds if it ends within 2 points of Dense-SGD at all three on every model; with limits if at some.",
    conclude=conclude,
    jobs=jobs,
)
