"""What ``gaussiank train`` does with its options: settings, directories, checkpoints, workers."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaussiank.environment import number_from
from gaussiank_lab.checkpoint import CHECKPOINTS_NAME, CheckpointPlan, Resume, find_resume
from gaussiank_lab.config import TrainConfig
from gaussiank_lab.config_file import checked_fields, read_config
from gaussiank_lab.launch import launch, restarts, under_torchrun, world_size
from gaussiank_lab.length import require_length
from gaussiank_lab.outputs import new_folder
from gaussiank_lab.recipes import resolve
from gaussiank_lab.records import RECORDS_NAME
from gaussiank_lab.run import require_startable, run
from gaussiank_lab.run_files import records_of, study_dir, study_of
from gaussiank_lab.study.study import STUDY_NAME
from gaussiank_lab.trackers import require_trackers


@dataclass(frozen=True)
class Options:
    """Options of ``gaussiank train`` that are no settings of the training; None where not given."""

    recipe: str | None = None
    config: Path | None = None
    out: Path | None = None
    resume: Path | None = None
    checkpoint_dir: Path | None = None
    checkpoint_every: int | None = None
    keep: int | None = None
    checkpoint_form: str | None = None
    max_restarts: int = 0
    record: int | None = None
    record_vectors: int | None = None
    track: str | None = None


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
