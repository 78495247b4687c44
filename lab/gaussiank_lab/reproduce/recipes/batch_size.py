"""What the paper does not show: how the gap of TopK-SGD depends on the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gaussiank_lab.reproduce.drawing import band_figure
from gaussiank_lab.reproduce.job import complete
from gaussiank_lab.reproduce.recipe import ClaimOutcome, Drawing, Recipe, Scale, judge
from gaussiank_lab.reproduce.settings import standins
from gaussiank_lab.reproduce.training import accuracies, batch_jobs, models_of, spread

METHODS = ("dense", "topk")


def conclude(out: Path, scale: Scale) -> ClaimOutcome:
    """Compare the gap over batch sizes."""
    jobs = complete(batch_jobs(scale), out)
    sizes = sorted({job.config.batch_size for job in jobs})
    found = {}
    for size in sizes:
        mine = [job for job in jobs if job.config.batch_size == size]
        found[size] = {method: accuracies(out, mine, method) for method in METHODS}
    gaps = [float(np.mean(found[size]["dense"]) - np.mean(found[size]["topk"])) for size in sizes]
    curves = {}
    for method in METHODS:
        seeds = zip(*(found[size][method] for size in sizes), strict=True)
        curves[method] = np.array(sizes, dtype=float), [np.array(seed) for seed in seeds]
    rows = [
        (f"{size}", *(spread(found[size][method]) for method in METHODS), f"{gap:.1f}")
        for size, gap in zip(sizes, gaps, strict=True)
    ]
    verdict = judge(holds=gaps == sorted(gaps), partly=gaps[-1] > gaps[0])
    because = f"From batch {sizes[0]} to {sizes[-1]} the gap goes from {gaps[0]:.1f} to {gaps[-1]:.1f} points."
    figure = band_figure(curves, "images for each worker and step", "final test accuracy (%)", log_x="")
    drawing = Drawing("accuracy", figure, "Final accuracy over batch size, for the same number of images seen.")
    header = ("batch for each worker", "Dense-SGD, %", "TopK-SGD, %", "gap, points")
    return ClaimOutcome(verdict, because, header, tuple(rows), (drawing,), standins(scale, models_of(jobs)))


BATCH_SIZE = Recipe(
    name="batch-size",
    title="The gap of TopK-SGD grows with the batch",
    claim="For the same number of examples, a larger batch leaves fewer steps to send what waits, so TopK-SGD falls "
    "further behind Dense-SGD.",
    criterion="Holds if the gap in final accuracy never shrinks from one batch size to the next; with limits if it is "
    "larger at the largest than at the smallest.",
    conclude=conclude,
    jobs=batch_jobs,
)
