"""What ``gaussiank train`` does with its options: settings, directories, checkpoints, workers."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gaussiank.parsing import number_from
from gaussiank_lab.checkpoint import CHECKPOINTS_NAME, LENGTH, CheckpointPlan, Resume, find_resume
from gaussiank_lab.launch import launch, restarts, under_torchrun, world_size
from gaussiank_lab.outputs import new_folder
from gaussiank_lab.report.records import RECORDS_NAME
from gaussiank_lab.study.study import STUDY_NAME
from gaussiank_lab.train.config import Options, TrainConfig, checked_fields, learning_rate, read_config, resolve
from gaussiank_lab.train.local import powersgd_method
from gaussiank_lab.train.progress import require_trackers
from gaussiank_lab.train.run import epoch_steps_of, records_of, require_startable, run, study_dir, study_of


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


def start(options: Options, given: Mapping[str, Any]) -> None:
    """Start a training run, or go on with one.

    Args:
        options: what is no setting.
        given: settings that were given, by name.

    Raises:
        ValueError: settings that are wrong or exclude each other, or a checkpoint that does not fit them.
        FileNotFoundError: data, a config file or a checkpoint is not there.
        FileExistsError: the run's directory holds records already.
        RuntimeError: a worker failed; names it.
    """
    _require_possible(options)
    resume = None if options.resume is None else find_resume(options.resume)
    settings = _settings(options, given, resume)
    run_dir = _run_dir(options, settings, resume)
    plan, record = _plan(options, run_dir, resume), _record(options, resume)
    for method in settings.methods:
        if plan is not None and powersgd_method(method) is not None:
            raise ValueError(
                f"checkpoint_every must be left out with {method}, got {plan.every}: the hook of torch is not saved. "
                "Compare it in a run of its own."
            )
    trackers = tuple(name.strip() for name in (options.track or "").split(",") if name.strip())
    if not restarts():  # what was started once can be started again
        if resume is not None:
            _require_resumable(resume, run_dir, settings)
            require_length(resume, settings)
        else:
            _require_unused(run_dir, settings)
        require_trackers(trackers)
        require_startable(settings)
        if options.out is None and resume is None and not under_torchrun():
            run_dir = new_folder(run_dir)
            plan = _plan(options, run_dir, resume)
    command = "gaussiank " + shlex.join(sys.argv[1:])
    launch(
        run,
        settings.workers,
        settings,
        run_dir,
        command,
        plan,
        resume,
        record,
        trackers,
        timeout_s=settings.timeout_s,
        max_restarts=options.max_restarts,
    )


def _require_possible(options: Options) -> None:
    """Raise when options exclude each other."""
    for name in ("recipe", "config"):
        if options.resume is not None and getattr(options, name) is not None:
            raise ValueError(
                f"{name} must be left out with resume, got {getattr(options, name)}. A resumed run keeps its settings."
            )
    if options.resume is None and options.checkpoint_every is None:
        for name in ("checkpoint_dir", "keep", "checkpoint_form"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"{name} must come with checkpoint_every, got {getattr(options, name)} alone. "
                    "Add --checkpoint-every 100."
                )
    if options.max_restarts < 0:
        raise ValueError(f"max_restarts must not be negative, got {options.max_restarts}. 0 never starts again.")
    if options.max_restarts and under_torchrun():
        raise ValueError(
            f"max_restarts must be left out under torchrun, got {options.max_restarts}. "
            "Give it to torchrun: torchrun --max-restarts."
        )
    if options.max_restarts and options.resume is None and options.checkpoint_every is None:
        raise ValueError(
            f"max_restarts must come with checkpoint_every, got {options.max_restarts} alone. "
            "Add --checkpoint-every 100."
        )
    restarting = number_from("TORCHELASTIC_MAX_RESTARTS", 0) > 0 and under_torchrun()
    if restarting and options.checkpoint_every is not None and options.out is None and options.resume is None:
        raise ValueError(
            "out must be given with checkpoint_every under torchrun --max-restarts, got none: a restarted worker could "
            "not know its run's directory. Add --out runs/NAME."
        )


def _settings(options: Options, given: Mapping[str, Any], resume: Resume | None) -> TrainConfig:
    if resume is None:
        fields = resolve(options.recipe, None if options.config is None else read_config(options.config), given)
    else:
        resume.require_same(given)
        fields = resolve(None, checked_fields(resume.manifest.config, str(resume.path)), given)
    fields["workers"] = world_size(given.get("workers"), fields.get("workers"))
    return TrainConfig(**fields)


def _run_dir(options: Options, settings: TrainConfig, resume: Resume | None) -> Path:
    if options.out is not None:
        return options.out
    if resume is not None:
        return resume.run_dir
    started = datetime.datetime.now(datetime.timezone.utc)
    return Path("runs") / f"{settings.model.replace(':', '-')}-{started:%Y%m%d-%H%M%S}"


def _plan(options: Options, run_dir: Path, resume: Resume | None) -> CheckpointPlan | None:
    """Say where and when checkpoints are written; a resumed run goes on as it did."""
    every, keep, form = options.checkpoint_every, options.keep, options.checkpoint_form
    usual = None
    if resume is not None:
        manifest = resume.manifest
        every, keep, form = every or manifest.every, keep or manifest.keep, form or manifest.form
        usual = resume.path.parent if run_dir.resolve() == resume.run_dir else None
    if every is None:
        return None
    chosen: dict[str, Any] = {"keep": keep, "form": form}
    folder = options.checkpoint_dir or usual or run_dir / CHECKPOINTS_NAME
    return CheckpointPlan(folder, every, **{name: value for name, value in chosen.items() if value is not None})


def _record(options: Options, resume: Resume | None) -> dict[str, Any] | None:
    """Return the options of the recorder; a resumed run records as it did."""
    record = {"every": options.record, "vectors": options.record_vectors}
    names = {"every": "record", "vectors": "record_vectors"}
    for key, value in record.items():
        if value is not None and value < 1:
            raise ValueError(f"{names[key]} must be at least 1, got {value}. Leave it out to record none.")
    saved = None if resume is None else resume.manifest.study
    if resume is not None and saved is not None:
        for key, value in record.items():
            if value not in (None, saved.get(key)):
                was = saved.get(key) or "left out"
                raise ValueError(f"{names[key]} must be {was}, as in {resume.path}, got {value}. Leave it out.")
            record[key] = saved.get(key)
    if record["every"] is None:
        if record["vectors"] is not None:
            raise ValueError(
                f"record_vectors must come with --record, got {record['vectors']} alone. Give --record 50."
            )
        return None
    return {key: value for key, value in record.items() if value is not None}


def _require_unused(run_dir: Path, settings: TrainConfig) -> None:
    """Raise when a run would overwrite another's records."""
    studies = [study_dir(run_dir, method) for method in settings.methods]
    for folder, name in ((run_dir, RECORDS_NAME), *((folder, STUDY_NAME) for folder in studies)):
        if (folder / name).exists():
            raise FileExistsError(f"out must be a directory without records, got {folder}. Choose another one.")


def _require_resumable(resume: Resume, run_dir: Path, settings: TrainConfig) -> None:
    """Raise unless the checkpoint is whole, and going on from it overwrites nothing."""
    if run_dir.resolve() != resume.run_dir:
        _require_unused(run_dir, settings)
    elif not resume.is_last:
        raise ValueError(
            f"resume must be the last checkpoint of a run to go on in its directory, got {resume.path.name}. "
            "Give --out for a new run that starts from it."
        )
    resume.require_whole()
    records_of(resume)
    study_of(resume)
