"""The figures of a study's page, in order."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from gaussiank_lab.study.shape_plots import cumulative, distributions, energy_against_density, pi_against_line
from gaussiank_lab.study.study import Study
from gaussiank_lab.study.time_plots import (
    cosine_over_steps,
    energy_over_steps,
    fits_over_steps,
    kept_over_steps,
    kurtosis_over_steps,
    residual_age,
    residual_size,
    zeros_over_steps,
)

FIGURES: tuple[tuple[str, Callable[[Study], Figure], str, str], ...] = (
    (
        "distribution-u",
        lambda study: distributions(study, study.samples[-1].selected),
        "What is selected from",
        "Density of every entry, in units of its root mean square, from light (early) to dark (late). A bell falls on "
        "both sides of zero; where it lies above the dashed normal law far out, its tails are heavier.",
    ),
    (
        "distribution-g",
        lambda study: distributions(study, "grad"),
        "Gradients",
        "The same for the gradient of one step on one worker.",
    ),
    (
        "distribution-e",
        lambda study: distributions(study, "residual"),
        "Residuals",
        "The same for what earlier steps did not send. Its sides end where the threshold of the selection lies.",
    ),
    ("cumulative", cumulative, "Cumulative distribution", "Share of the entries below a value."),
    (
        "pi-squared",
        pi_against_line,
        "Ordered squares against the line",
        "The paper's premise: the curve is convex, reaches zero and lies under the line. The axis is logarithmic.",
    ),
    (
        "bounds-density",
        energy_against_density,
        "Bounds against truth, over densities",
        "Energy share that exact Top_k sends of the last sample. A bound promises at least its line; the upright line "
        "is the density in use.",
    ),
    (
        "bounds-steps",
        energy_over_steps,
        "Bounds against truth, over steps",
        "One minus the contraction. Operators that keep more than k entries lie higher, those that keep fewer lower.",
    ),
    (
        "kept",
        kept_over_steps,
        "Entries kept",
        "1 is exact; the band from 2/3 to 4/3 is what Gaussian_k aims at. Steps that kept nothing have no point.",
    ),
    (
        "fits",
        fits_over_steps,
        "Fitted laws",
        "Largest gap between the distribution of the non-zero entries and the law with their moments.",
    ),
    ("kurtosis", kurtosis_over_steps, "Kurtosis", "Fourth moment over the squared second; dashed lines are laws."),
    ("residual-size", residual_size, "Size of the residual", "What waits, in gradients."),
    ("residual-age", residual_age, "Age of the residual", "Followed on up to 4096 entries."),
    ("cosine", cosine_over_steps, "Direction", "1 would be the direction of the dense mean gradient."),
    ("zeros", zeros_over_steps, "Zeros", "Entries that are exactly zero: dead units, or just sent."),
)
"""File name, how it is drawn, heading, caption."""
