"""A resumed run of another length: allowed where the steps that are taken are those of a run of that length."""

from __future__ import annotations

from dataclasses import replace

from gaussiank_lab.checkpoint import LENGTH, Resume
from gaussiank_lab.config import TrainConfig
from gaussiank_lab.config_file import checked_fields
from gaussiank_lab.learning_rate import learning_rate
from gaussiank_lab.run import epoch_steps_of


def require_length(resume: Resume, config: TrainConfig) -> None:
    """Raise unless a run of another length would have come to the same checkpoint, bit for bit.

    Of what a step does, the learning rate alone may depend on the number of steps. So any length above the steps taken
    serves with a constant rate, and with a falling one as long as it has not begun to fall in either run.

    Args:
        resume: checkpoint to go on from.
        config: settings of the run that goes on.

    Raises:
        ValueError: the run would be another, or methods have ended at the old length; says which, and what to do.
    """
    manifest = resume.manifest
    saved = TrainConfig(**checked_fields(manifest.config, str(resume.path)))
    if all(getattr(saved, name) == getattr(config, name) for name in LENGTH):
        return
    epoch_steps = epoch_steps_of(replace(config, workers=manifest.world_size))
    old, new = saved.total_steps(epoch_steps), config.total_steps(epoch_steps)
    taken, ended = manifest.step, saved.methods[: saved.methods.index(manifest.method)]
    if new == old:
        return
    name = "steps" if config.steps else "epochs"
    asked = f"{new}" if config.steps else f"{config.epochs} epochs of {epoch_steps} steps"
    anew = f"Start a new run: gaussiank train --config {resume.run_dir} --steps {new}."
    if ended:
        raise ValueError(f"{name} must keep to {old} steps, at which {', '.join(ended)} ended, got {asked}. {anew}")
    if new <= taken:
        raise ValueError(f"{name} must reach past the {taken} steps that are taken, got {asked}. Raise it.")
    if any(_rate(saved, step, old) != _rate(config, step, new) for step in range(1, taken + 1)):
        raise ValueError(
            f"{name} must keep to {old} steps with lr_schedule {config.lr_schedule}, got {asked}: the learning rate of "
            f"the {taken} steps that are taken would have been another. {anew}"
        )


def _rate(config: TrainConfig, step: int, steps: int) -> float:
    return learning_rate(config.lr, config.lr_schedule, step, steps, config.lr_warmup_steps)
