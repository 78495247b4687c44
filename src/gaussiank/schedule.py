"""How the density changes over the steps of a training run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

DGC_STAGES = (0.25, 0.0625, 0.015625, 0.004, 0.001)
"""Warm-up of Deep Gradient Compression, one density an epoch."""

PUBLISHED_STAGES = (0.015625, 0.004, 0.001)
"""Warm-up hidden in the published code of GaussianK-SGD."""


@runtime_checkable
class Schedule(Protocol):
    """Give the density in (0, 1] to use at a step; a pure function, so that a resumed run repeats it."""

    def __call__(self, step: int) -> float:
        """Return the density at ``step`` (0 is the first)."""
        ...


def require_density(density: float, argument: str = "density") -> float:
    """Return ``density`` as a float, or raise unless it lies in (0, 1].

    Raises:
        ValueError: it does not, or it is no number.

    Example:
        >>> require_density(0.001)
        0.001
    """
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise ValueError(
            f"{argument} must be in (0, 1], got {density!r}. Give the share of entries to send, such as 0.001."
        )
    return float(density)


def _require_steps(argument: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{argument} must be at least 1, got {steps}. Give the length in optimizer steps.")


@dataclass(frozen=True)
class Constant:
    """Keep one density from the first step to the last.

    Args:
        density: share of entries to send; a larger value sends more.

    Example:
        >>> Constant(0.01)(step=500)
        0.01
    """

    density: float

    def __post_init__(self) -> None:
        require_density(self.density)

    def __call__(self, step: int) -> float:
        """Return the density, whatever the step."""
        return self.density


@dataclass(frozen=True)
class DenseStart:
    """Send everything for the first ``steps`` steps, then the given density.

    Args:
        density: share of entries to send afterwards.
        steps: how long the dense start lasts; a longer one costs traffic and settles the first, fastest changes.

    Example:
        >>> schedule = DenseStart(0.001, steps=100)
        >>> schedule(99), schedule(100)
        (1.0, 0.001)
    """

    density: float
    steps: int

    def __post_init__(self) -> None:
        require_density(self.density)
        _require_steps("steps", self.steps)

    def __call__(self, step: int) -> float:
        """Return 1 before ``steps``, then the density."""
        return 1.0 if step < self.steps else self.density


@dataclass(frozen=True)
class Warmup:
    """Go down a ladder of densities, ``stage_steps`` steps on each, and stay on the last.

    Args:
        densities: one density for each stage.
        stage_steps: length of a stage in steps (DGC: one epoch); longer is safer and sends more.

    Source: Lin et al. 2018, Deep Gradient Compression, section 3.3 (``DGC_STAGES``); the published code of
    GaussianK-SGD (``PUBLISHED_STAGES``).

    Example:
        >>> schedule = Warmup.dgc(0.001, stage_steps=10)
        >>> [schedule(step) for step in (0, 10, 20, 30, 40, 10_000)]
        [0.25, 0.0625, 0.015625, 0.004, 0.001, 0.001]
    """

    densities: tuple[float, ...]
    stage_steps: int

    def __post_init__(self) -> None:
        if not self.densities:
            raise ValueError("densities must name at least one stage, got none. Give (0.25, 0.001), for example.")
        for density in self.densities:
            require_density(density, "densities")
        _require_steps("stage_steps", self.stage_steps)

    @classmethod
    def dgc(cls, density: float, stage_steps: int) -> Warmup:
        """Go down DGC's stages as far as they lie above ``density``, and end on it."""
        return cls._ending(DGC_STAGES, density, stage_steps)

    @classmethod
    def published(cls, density: float, stage_steps: int) -> Warmup:
        """Go down the three stages of the published GaussianK-SGD code as far as they lie above ``density``.

        Differs: the published code cannot go below 0.001; here the last stage is the density asked for.
        """
        return cls._ending(PUBLISHED_STAGES, density, stage_steps)

    @classmethod
    def _ending(cls, stages: tuple[float, ...], density: float, stage_steps: int) -> Warmup:
        require_density(density)
        return cls((*(stage for stage in stages if stage > density), density), stage_steps)

    def __call__(self, step: int) -> float:
        """Return the density of the stage that ``step`` falls into."""
        return self.densities[min(step // self.stage_steps, len(self.densities) - 1)]


_SAMPLED_STEPS = (0, 1, 10, 100, 1000, 10_000, 100_000)


def describe(schedule: Schedule) -> str:
    """Write a schedule as text that is the same on every worker: its own, or its densities at a few steps.

    Example:
        >>> describe(Constant(0.01))
        'Constant(density=0.01)'
        >>> describe(lambda step: 0.5 / (step + 1))
        'densities 0.5, 0.25, 0.0455, 0.00495, 0.0005, 5e-05, 5e-06 at steps 0, 1, 10, 100, 1000, 10000, 100000'
    """
    if dataclasses.is_dataclass(type(schedule)):
        return str(schedule)
    densities = ", ".join(f"{schedule(step):.3g}" for step in _SAMPLED_STEPS)
    return f"densities {densities} at steps {', '.join(map(str, _SAMPLED_STEPS))}"


def entries(density: float, numel: int) -> int:
    """Return k, the entries that a density asks of a vector: ``max(1, round(density * numel))``.

    Example:
        >>> entries(0.001, 61_706), entries(0.001, 10)
        (62, 1)
    """
    return max(1, min(numel, round(density * numel)))
