"""The training runs that several recipes share, and what is read from them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gaussiank_lab.report.records import number
from gaussiank_lab.reproduce.drawing import Curve
from gaussiank_lab.reproduce.job import Job
from gaussiank_lab.reproduce.recipe import Scale
from gaussiank_lab.reproduce.settings import PAPER_MODELS, SEEDS, config, models

RANDOM = "randomk:feedback=false"
PUBLISHED = "gaussiank:mode=published"
METHODS = ("dense", "topk", RANDOM, "gaussiank", PUBLISHED, "dgc", "trimmedtopk")
SENSITIVE_METHODS = ("dense", "topk", "gaussiank", PUBLISHED)
SENSITIVE_DENSITIES = (0.001, 0.005, 0.01)
FAST_MODELS = ("fnn3", "lenet5")
WARMUPS = ("none", "published", "dgc")
STUDY_OPERATORS = ("topk", "gaussiank", PUBLISHED, "dgc", "randomk")


def main_jobs(scale: Scale) -> list[Job]:
    """Return every method on every model with every seed, at density 0.001."""
    return [Job(config(model, scale, METHODS, seed=seed)) for model in models(scale) for seed in SEEDS[scale]]


def study_jobs(scale: Scale) -> list[Job]:
    """Return the runs whose gradients are recorded: Dense-SGD and TopK-SGD on the six models."""
    jobs = []
    for model in models(scale, PAPER_MODELS):
        settings = config(model, scale, ("dense", "topk"))
        steps = settings.steps or 1000
        jobs.append(Job(settings, record_every=max(1, steps // 20), operators=STUDY_OPERATORS))
    return jobs


def density_jobs(scale: Scale) -> list[Job]:
    """Return the runs at the two densities besides 0.001."""
    return [
        Job(config(model, scale, SENSITIVE_METHODS, seed=seed, density=density))
        for model in models(scale, FAST_MODELS)
        for density in SENSITIVE_DENSITIES[1:]
        for seed in SEEDS[scale]
    ]


def warmup_jobs(scale: Scale) -> list[Job]:
    """Return the runs whose density starts high."""
    return [
        Job(config(model, scale, ("topk", PUBLISHED), seed=seed, warmup=warmup, warmup_steps=_quarter(model, scale)))
        for model in models(scale, FAST_MODELS)
        for warmup in WARMUPS[1:]
        for seed in SEEDS[scale]
    ]


def batch_jobs(scale: Scale) -> list[Job]:
    """Return runs over the same number of examples in small and large batches."""
    jobs = []
    for batch_size, share in ((16, 2.0), (64, 0.5), (256, 0.125)):
        for model in models(scale, ("lenet5",)):
            for seed in SEEDS[scale]:
                settings = config(model, scale, ("dense", "topk"), seed=seed, batch_size=batch_size)
                steps = {} if settings.steps is None else {"steps": max(2, round(settings.steps * share))}
                jobs.append(Job(config(model, scale, ("dense", "topk"), seed=seed, batch_size=batch_size, **steps)))
    return jobs


def _quarter(model: str, scale: Scale) -> int | None:
    settings = config(model, scale, ("topk",))
    return None if settings.steps is None else max(3, settings.steps // 4)


def of_model(jobs: Iterable[Job], model: str) -> list[Job]:
    """Return the jobs that train one model."""
    return [job for job in jobs if job.config.model == model]


def models_of(jobs: Iterable[Job]) -> tuple[str, ...]:
    """Return the models of some jobs, in order."""
    return tuple(dict.fromkeys(job.config.model for job in jobs))


def accuracies(out: Path, jobs: Iterable[Job], method: str) -> list[float]:
    """Return the final accuracy of each seed, in percent; 0 where it diverged."""
    found = []
    for job in jobs:
        records = job.records(out)
        row = next(row for row in records.methods if row["method"] == method)
        found.append(0.0 if records.diverged(method) else 100 * number(row, "accuracy"))
    return found


def spread(values: list[float]) -> str:
    """Write a mean with the lowest and the highest seed.

    Example:
        >>> spread([80.0, 81.0, 82.0]), spread([80.0])
        ('81.0 (80.0–82.0)', '80.0')
    """
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}–{max(values):.1f})"


def ranged(values: list[float], form: str = ".1f") -> str:
    """Write the lowest and the highest of some values, or the one that there is.

    Example:
        >>> ranged([2.0, 1.0]), ranged([3.0], "+.1f")
        ('1.0 to 2.0', '+3.0')
    """
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def accuracy_curve(out: Path, jobs: Iterable[Job], method: str) -> Curve:
    """Return test accuracy in percent over steps."""
    tables = [job.records(out).columns(method, "step", "accuracy", kind="eval") for job in jobs]
    return tables[0][0], [100 * accuracy for _, accuracy in tables]


def loss_curve(out: Path, jobs: Iterable[Job], method: str) -> Curve:
    """Return training loss over steps, its mean over every twentieth of the run."""
    tables = [_binned(*job.records(out).columns(method, "step", "loss")) for job in jobs]
    return tables[0][0], [loss for _, loss in tables]


def kept_curve(out: Path, jobs: Iterable[Job], method: str) -> Curve:
    """Return kept/k over steps, its mean over every twentieth of the run."""
    tables = []
    for job in jobs:
        step, kept, k = job.records(out).columns(method, "step", "kept", "k")
        tables.append(_binned(step, kept / k))
    return tables[0][0], [kept for _, kept in tables]


def total_bytes(out: Path, jobs: Iterable[Job], method: str) -> float:
    """Return the bytes that all workers sent over the whole run, mean over seeds."""
    sums = [np.nansum(job.records(out).columns(method, "sent_bytes")[0]) * job.config.workers for job in jobs]
    return float(np.mean(sums))


def _binned(step: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = [part for part in np.array_split(np.arange(step.size), min(20, step.size)) if part.size]
    return np.array([step[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])
