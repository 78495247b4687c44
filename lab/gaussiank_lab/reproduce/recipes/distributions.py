"""Accumulated gradients are bell-shaped; pi^2 is convex and under its line."""

from __future__ import annotations

from pathlib import Path

from gaussiank_lab.reproduce.job import complete
from gaussiank_lab.reproduce.recipe import ClaimOutcome, Drawing, Recipe, Scale, judge
from gaussiank_lab.reproduce.settings import standins
from gaussiank_lab.reproduce.training import models_of, study_jobs
from gaussiank_lab.study.fit import best_fit
from gaussiank_lab.study.plots import cumulative, distributions, pi_against_line
from gaussiank_lab.study.summary import law_name, shapes, whole_vectors


def conclude_histograms(out: Path, scale: Scale) -> ClaimOutcome:
    """Count the samples that are bells."""
    rows, drawings = [], []
    bells = total = 0
    jobs = complete(study_jobs(scale), out)
    for job in jobs:
        for method in job.config.methods:
            study = job.study(out, method)
            judged = shapes(whole_vectors(study))
            bells += sum(shape.bell for shape in judged)
            total += len(judged)
            last = study.samples[-1].vectors[study.samples[-1].selected]
            fit = best_fit(last)
            rows.append(
                (
                    job.config.model,
                    method,
                    f"{sum(shape.bell for shape in judged)} of {len(judged)}",
                    f"{max(shape.dip for shape in judged):.4f}",
                    f"{last.kurtosis:.3g}",
                    f"{law_name(fit.name)} ({fit.distance:.3f})" if fit else "–",
                )
            )
            what = "u under TopK-SGD" if method == "topk" else "g under Dense-SGD"
            name = f"{job.config.model}-{method}"
            caption = f"{job.config.model}: density of {what} over its root mean square, early (light) to late (dark)."
            drawings.append(Drawing(f"{name}-density", distributions(study, study.samples[-1].selected), caption))
            caption = f"{job.config.model}: distribution function of {what}."
            drawings.append(Drawing(f"{name}-cumulative", cumulative(study), caption))
    verdict = judge(holds=bells == total, partly=bells >= 0.9 * total)
    because = (
        f"{bells} of {total} recorded vectors are bells: on both sides of zero the density does not increase, to 1 % "
        "of "
        "the entries. A bell need not be normal: see the nearest law of each."
    )
    header = ("model", "method", "bells", "largest dip", "kurtosis at the end", "nearest law at the end (distance)")
    return ClaimOutcome(
        verdict,
        because,
        header,
        tuple(rows),
        tuple(drawings),
        standins(scale, models_of(jobs)),
    )


def conclude_pi_squared(out: Path, scale: Scale) -> ClaimOutcome:
    """Count the samples on which pi^2 does what the paper asks of it."""
    rows, drawings = [], []
    good = total = 0
    jobs = complete(study_jobs(scale), out)
    for job in jobs:
        for method in job.config.methods:
            study = job.study(out, method)
            judged = shapes(whole_vectors(study))
            both = sum(shape.convex and shape.below_line for shape in judged)
            good, total = good + both, total + len(judged)
            rows.append(
                (
                    job.config.model,
                    method,
                    f"{sum(shape.below_line for shape in judged)} of {len(judged)}",
                    f"{sum(shape.convex for shape in judged)} of {len(judged)}",
                    f"{sum(shape.verdicts['squared'].premise for shape in judged)} of {len(judged)}",
                )
            )
            caption = f"{job.config.model}, {method}: ordered squares over the largest, early (light) to late (dark)."
            drawings.append(Drawing(f"{job.config.model}-{method}", pi_against_line(study), caption))
    verdict = judge(holds=good == total, partly=good >= 0.9 * total)
    because = (
        f"On {good} of {total} recorded vectors pi^2 is convex, reaches zero and lies under the line, on dyadic blocks "
        "of "
        "the ordered entries."
    )
    header = ("model", "method", "under the line", "convex, to zero", "weaker condition that is enough")
    return ClaimOutcome(
        verdict,
        because,
        header,
        tuple(rows),
        tuple(drawings),
        standins(scale, models_of(jobs)),
    )


HISTOGRAMS = Recipe(
    name="histograms",
    title="Gradients are bell-shaped",
    claim="Under TopK-SGD with error compensation the accumulated gradients are bell-shaped, most of their mass near "
    "zero, throughout training and on all six models; so are the gradients of Dense-SGD.",
    criterion="Holds if every recorded whole-model vector is a bell (the distance of its distribution from the nearest "
    "one with a falling density is at most 0.01); with limits if nine of ten are.",
    conclude=conclude_histograms,
    jobs=study_jobs,
)

PI_SQUARED = Recipe(
    name="pi-squared",
    title="Ordered squares lie under the line",
    claim="With pi_(i) the i-th largest |u| over the largest, pi^2 is convex and lies under 1 - i/d.",
    criterion="Holds if both are true of every recorded whole-model vector (and pi^2 reaches zero, which the theorem "
    "needs and the paper leaves out); with limits if of nine in ten.",
    conclude=conclude_pi_squared,
    jobs=study_jobs,
)
