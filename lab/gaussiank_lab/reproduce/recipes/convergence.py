"""TopK-SGD follows Dense-SGD, RandK-SGD does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gaussiank_lab.reproduce.drawing import band_figure
from gaussiank_lab.reproduce.job import complete
from gaussiank_lab.reproduce.recipe import Drawing, Outcome, Recipe, Scale, judge
from gaussiank_lab.reproduce.settings import standins
from gaussiank_lab.reproduce.training import (
    RANDOM,
    accuracies,
    accuracy_curve,
    loss_curve,
    main_jobs,
    models_of,
    of_model,
    spread,
)

METHODS = ("dense", "topk", RANDOM)


def conclude(out: Path, scale: Scale) -> Outcome:
    """Compare final accuracies, model by model."""
    jobs = complete(main_jobs(scale), out)
    rows, drawings, gaps, leads = [], [], [], []
    for model in models_of(jobs):
        mine = of_model(jobs, model)
        found = {method: accuracies(out, mine, method) for method in METHODS}
        gaps.append(np.mean(found["dense"]) - np.mean(found["topk"]))
        leads.append(np.mean(found["topk"]) - np.mean(found[RANDOM]))
        rows.append((model, *(spread(found[method]) for method in METHODS)))
        for what, curve, label in (
            ("accuracy", accuracy_curve, "test accuracy (%)"),
            ("loss", loss_curve, "training loss"),
        ):
            curves = {method: curve(out, mine, method) for method in METHODS}
            caption = f"{model}: {label.split(' (')[0]}, mean of {len(mine)} seeds, band from lowest to highest."
            drawings.append(Drawing(f"{model}-{what}", band_figure(curves, "step", label), caption))
    ahead = min(leads) > 0
    verdict = judge(holds=ahead and max(gaps) <= 2, partly=ahead, points_below=float(max(gaps)))
    because = (
        f"TopK-SGD ends {max(gaps):.1f} points below Dense-SGD at most (over models, means of seeds), and at least "
        f"{min(leads):.1f} points above RandK-SGD."
    )
    header = ("final accuracy, %", "Dense-SGD", "TopK-SGD", "RandK-SGD")
    return Outcome(verdict, because, header, tuple(rows), tuple(drawings), standins(scale, models_of(jobs)))


CONVERGENCE = Recipe(
    name="convergence",
    title="TopK-SGD converges like Dense-SGD, RandK-SGD does not",
    claim="At density 0.001, TopK-SGD with error compensation has nearly the convergence of Dense-SGD, while RandK-SGD "
    "(without error compensation, as in the published code) converges much worse.",
    criterion="Holds if on every model TopK-SGD ends within 2 points of Dense-SGD and above RandK-SGD; with limits if "
    "it "
    "ends above RandK-SGD everywhere, but further from Dense-SGD somewhere.",
    conclude=conclude,
    jobs=main_jobs,
)
