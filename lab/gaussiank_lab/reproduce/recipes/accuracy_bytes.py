"""Accuracy against what was communicated."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gaussiank_lab.report.summary import bytes_text
from gaussiank_lab.reproduce.drawing import Curve, band_figure
from gaussiank_lab.reproduce.job import Job, complete
from gaussiank_lab.reproduce.recipe import ClaimOutcome, Drawing, Recipe, Scale, judge
from gaussiank_lab.reproduce.settings import standins
from gaussiank_lab.reproduce.training import METHODS, accuracies, main_jobs, models_of, of_model, spread, total_bytes


def conclude(out: Path, scale: Scale) -> ClaimOutcome:
    """Set accuracies beside the bytes that all workers sent."""
    jobs = complete(main_jobs(scale), out)
    rows, drawings, holds = [], [], []
    for model in models_of(jobs):
        mine = of_model(jobs, model)
        sent = {method: total_bytes(out, mine, method) for method in METHODS}
        found = {method: accuracies(out, mine, method) for method in METHODS}
        rows += [(model, method, spread(found[method]), bytes_text(sent[method])) for method in METHODS]
        exact = float(np.mean(found["topk"]))
        holds.append(np.mean(found["gaussiank"]) >= exact - 1 and sent["gaussiank"] <= 1.34 * sent["topk"])
        curves = {method: _curve(out, mine, method) for method in METHODS}
        figure = band_figure(curves, "sent by all workers", "test accuracy (%)", log_x="B")
        caption = f"{model}: accuracy over the bytes that all workers had sent by then, mean of {len(mine)} seeds."
        drawings.append(Drawing(model, figure, caption))
    verdict = judge(holds=all(holds), partly=any(holds))
    because = (
        f"On {sum(holds)} of {len(holds)} models the bracketed Gaussian_k ends within 1 point of Top_k and sends at "
        "most "
        "a third more; the table has all operators."
    )
    header = ("model", "method", "final accuracy, %", "sent by all workers")
    return ClaimOutcome(verdict, because, header, tuple(rows), tuple(drawings), standins(scale, models_of(jobs)))


def _curve(out: Path, jobs: list[Job], method: str) -> Curve:
    accuracies_, places = [], []
    for job in jobs:
        records = job.records(out)
        step, accuracy = records.columns(method, "step", "accuracy", kind="eval")
        at, sent = records.columns(method, "step", "sent_bytes")
        total = np.cumsum(sent) * job.config.workers
        places.append(np.interp(step, at, total))
        accuracies_.append(100 * accuracy)
    return np.mean(places, axis=0), accuracies_


ACCURACY_BYTES = Recipe(
    name="accuracy-bytes",
    title="Accuracy for the gradients communicated",
    claim="For the same accuracy GaussianK-SGD communicates about as much as the other approximations of Top_k.",
    criterion="Holds if on every model Gaussian_k (bracketed) ends within 1 point of exact Top_k for at most 4/3 of "
    "its "
    "bytes; with limits if on some.",
    conclude=conclude,
    jobs=main_jobs,
)
