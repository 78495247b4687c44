"""The table of final accuracies."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gaussiank_lab.reproduce.drawing import band_figure
from gaussiank_lab.reproduce.job import complete
from gaussiank_lab.reproduce.recipe import ClaimOutcome, Drawing, Recipe, Scale, judge
from gaussiank_lab.reproduce.settings import standins
from gaussiank_lab.reproduce.training import (
    METHODS,
    accuracies,
    accuracy_curve,
    main_jobs,
    models_of,
    of_model,
    ranged,
    spread,
)


def conclude(out: Path, scale: Scale) -> ClaimOutcome:
    """Set all methods side by side."""
    jobs = complete(main_jobs(scale), out)
    rows, drawings, gaps = [], [], []
    for model in models_of(jobs):
        mine = of_model(jobs, model)
        found = {method: accuracies(out, mine, method) for method in METHODS}
        gaps.append(float(np.mean(found["dense"]) - np.mean(found["gaussiank"])))
        rows.append((model, *(spread(found[method]) for method in METHODS)))
        curves = {method: accuracy_curve(out, mine, method) for method in METHODS}
        caption = f"{model}: test accuracy of every method, mean of {len(mine)} seeds, band from lowest to highest."
        drawings.append(Drawing(model, band_figure(curves, "step", "test accuracy (%)"), caption))
    verdict = judge(holds=max(gaps) <= 2, partly=min(gaps) <= 2, points_below=max(gaps))
    because = f"GaussianK-SGD (bracketed) ends {ranged(gaps)} points below Dense-SGD, over models."
    return ClaimOutcome(
        verdict,
        because,
        ("final accuracy, %", *METHODS),
        tuple(rows),
        tuple(drawings),
        standins(scale, models_of(jobs)),
    )


ACCURACY_TABLE = Recipe(
    name="accuracy-table",
    title="Final accuracies",
    claim="GaussianK-SGD ends with nearly the accuracy of Dense-SGD.",
    criterion="Holds if the bracketed Gaussian_k ends within 2 points of Dense-SGD on every model; with limits if on "
    "some.",
    conclude=conclude,
    jobs=main_jobs,
)
