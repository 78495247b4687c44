"""The bounds on what Top_k leaves, on synthetic laws and on real vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from gaussiank_lab.reproduce.drawing import Curve, band_figure
from gaussiank_lab.reproduce.job import complete
from gaussiank_lab.reproduce.recipe import ClaimOutcome, Drawing, Recipe, Scale, Verdict
from gaussiank_lab.reproduce.settings import standins
from gaussiank_lab.reproduce.training import models_of, study_jobs
from gaussiank_lab.study.plots import energy_against_density, energy_over_steps
from gaussiank_lab.study.summary import law_name, layer_vectors, shapes, tallies, whole_vectors
from gaussiank_lab.theory import BOUNDS, CUBED, LAWS, LINEAR, SQUARED
from gaussiank_lab.theory.bounds import energy_blocks, tail_share

_DENSITY = np.geomspace(0.999, 1e-4, 120)
_TABLE = (0.001, 0.01, 0.1)


def conclude_synthetic(out: Path, scale: Scale) -> ClaimOutcome:
    """Compare exact contractions of laws with the bounds, and show a vector that breaks one."""
    curves = {f"{name} bound": _over_linear(bound.delta) for name, bound in BOUNDS.items()}
    curves |= {law_name(name): _over_linear(law().delta) for name, law in LAWS.items()}
    rows = [
        (name.replace("_", " "), *(f"{LAWS[name]().contraction(density):.6f}" for density in _TABLE)) for name in LAWS
    ]
    rows += [
        (f"bound: {name}", *(f"{bound.contraction(density):.6f}" for density in _TABLE))
        for name, bound in BOUNDS.items()
    ]
    kept = all(
        law().contraction(float(at)) <= CUBED.contraction(float(at)) + 1e-12 for law in LAWS.values() for at in _DENSITY
    )
    broken = np.sqrt([4.0, 3.0, 2.0, 1.0])
    left, promised = tail_share(broken, 2), SQUARED.contraction(0.5)
    breaks = left > promised and not SQUARED.premise(*energy_blocks(broken))
    verdict: Verdict = "holds with limits" if kept and breaks else "does not hold"
    because = (
        f"All {len(LAWS)} bell-shaped laws keep the squared bound, and even the cubed one, which the uniform law meets "
        f"exactly. But the condition as the paper states it is not enough: u² = (4, 3, 2, 1) has a convex pi² and "
        "leaves "
        f"{left:.2f} at k = 2, where the bound promises {promised:.2f}. It must also reach zero."
    )
    label = "share of energy sent / density"
    figure = band_figure(curves, "density k / d", label, log_x="", log_y=True, falling_x=True)
    caption = "Energy share that Top_k sends of each law, and that each bound promises, in units of the linear bound."
    drawing = Drawing("laws", figure, caption)
    header = ("contraction at density", *(f"{density:g}" for density in _TABLE))
    return ClaimOutcome(verdict, because, header, tuple(rows), (drawing,))


def _over_linear(delta: Callable[[float], float]) -> Curve:
    return _DENSITY, [np.array([delta(float(at)) / at for at in _DENSITY])]


def conclude_real(out: Path, scale: Scale) -> ClaimOutcome:
    """Count the recorded vectors that keep each bound, with and without its condition."""
    rows, drawings = [], []
    contradictions = broken = total = 0
    jobs = complete(study_jobs(scale), out)
    for job in jobs:
        study = job.study(out, "topk")
        for kind, vectors in (("whole model", whole_vectors), ("layers", layer_vectors)):
            for tally in tallies(shapes(vectors(study))):
                rows.append((job.config.model, kind, tally.bound, *(f"{count}" for count in tally[1:])))
                contradictions += tally.broken_with_premise
                if tally.bound == SQUARED.name and kind == "whole model":
                    broken, total = broken + tally.vectors - tally.kept, total + tally.vectors
        model = job.config.model
        caption = f"{model}: energy share that Top_k sends of the last recorded u, and what each bound promises."
        drawings.append(Drawing(f"{model}-density", energy_against_density(study), caption))
        caption = f"{model}: energy share sent at density {job.config.density:g} over training, by operator."
        drawings.append(Drawing(f"{model}-steps", energy_over_steps(study), caption))
    verdict: Verdict = "holds" if not (broken or contradictions) else "holds with limits"
    if contradictions:
        verdict = "does not hold"
    because = (
        f"The squared bound is kept by {total - broken} of {total} whole-model vectors. Among vectors and layers that "
        f"fulfil the condition of a bound, {contradictions} break it. At density 0.001 the bounds promise "
        f"{LINEAR.delta(0.001):.4f}, {SQUARED.delta(0.001):.4f} and {CUBED.delta(0.001):.4f} of the energy."
    )
    header = ("model", "vectors", "bound", "looked at", "condition holds", "bound kept", "broken with condition")
    return ClaimOutcome(
        verdict,
        because,
        header,
        tuple(rows),
        tuple(drawings),
        standins(scale, models_of(jobs)),
    )


BOUNDS_SYNTHETIC = Recipe(
    name="bounds-synthetic",
    title="The tighter bound, on known laws",
    claim="If pi^2 is convex and under the line 1 - i/d, Top_k leaves at most (1 - k/d)^2 of the energy.",
    criterion="Holds if every bell-shaped law keeps the squared bound and no vector that fulfils the condition as "
    "stated "
    "breaks it; with limits if the condition needs an addition.",
    conclude=conclude_synthetic,
)

BOUNDS_REAL = Recipe(
    name="bounds-real",
    title="The tighter bound, on real gradients",
    claim="On the accumulated gradients of real training the bound (1 - k/d)^2 holds and is closer to the truth than "
    "1 - k/d.",
    criterion="Holds if every recorded whole-model vector keeps the squared bound; a vector that fulfils a bound's "
    "condition and breaks it refutes the theory.",
    conclude=conclude_real,
    jobs=study_jobs,
)
