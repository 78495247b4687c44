"""A run: one method after the other, with the files that it writes and goes on from."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

import gaussiank
from gaussiank.comm import require_agreement
from gaussiank.durable import write_whole
from gaussiank_lab.checkpoint import (
    LENGTH,
    CheckpointFolder,
    CheckpointPlan,
    Manifest,
    Resume,
    Saver,
    WorkerState,
    last_usable,
    load_worker,
)
from gaussiank_lab.data import Batches, Data
from gaussiank_lab.launch import restarts
from gaussiank_lab.machine import cpu_name
from gaussiank_lab.report.records import RECORDS_NAME, RecordWriter, read_records, written_before
from gaussiank_lab.study.recorder import Recorder
from gaussiank_lab.study.study import STUDY_NAME
from gaussiank_lab.train.config import TrainConfig, write_config
from gaussiank_lab.train.progress import LiveProgress, Tracker, open_trackers
from gaussiank_lab.train.training import Training


def records_of(resume: Resume) -> bytes:
    """Return the records that a run had written by its checkpoint; none when its directory is gone.

    Raises:
        ValueError: they are not what they were.
    """
    manifest = resume.manifest
    return written_before(resume.run_dir / RECORDS_NAME, manifest.records_bytes, manifest.records_crc32)


def study_of(resume: Resume) -> bytes:
    """Return what a run had recorded of its gradients by its checkpoint; nothing when that is gone or there was none.

    Raises:
        ValueError: it is not what it was.
    """
    study, method = resume.manifest.study, resume.manifest.method
    if study is None:
        return b""
    return written_before(study_dir(resume.run_dir, method) / STUDY_NAME, study["size_bytes"], study["crc32"])


def study_dir(run_dir: Path, method: str) -> Path:
    """Return where the gradients of one method are recorded.

    Example:
        >>> study_dir(Path("runs/one"), "gaussiank:mode=published").as_posix()
        'runs/one/gaussiank-mode=published'
    """
    return run_dir / re.sub(r"[^A-Za-z0-9=._]+", "-", method)


def require_startable(config: TrainConfig) -> None:
    """Raise what every worker would raise, before any of them is started.

    Raises:
        ValueError: no such device, a damaged file, or a batch that does not fit the data.
        FileNotFoundError: the data are not there.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be cpu where torch sees no CUDA, got {config.device!r}. Leave it out.")
    epoch_steps_of(config)


def epoch_steps_of(config: TrainConfig) -> int:
    """Return the optimizer steps in an epoch of a run; reads its data.

    Raises:
        ValueError: a damaged file, or a batch that does not fit the data.
        FileNotFoundError: the data are not there.
    """
    train = config.load_data().train
    batches = Batches(train, config.batch_size, rank=0, world_size=config.workers, seed=config.seed)
    return config.epoch_steps(len(batches))


def run(
    config: TrainConfig,
    run_dir: Path,
    command: str,
    plan: CheckpointPlan | None = None,
    resume: Resume | None = None,
    record: Mapping[str, Any] | None = None,
    trackers: tuple[str, ...] = (),
) -> None:
    """Train with every method of ``config`` and write the run's directory; within a process group.

    A run that the launcher has started again goes on from its last checkpoint by itself.

    Args:
        config: settings, the same on every worker.
        run_dir: where rank 0 writes ``records.jsonl``, ``config.json`` and ``report.html``.
        command: command line that was given, for the records.
        plan: where and when to write checkpoints, or None.
        resume: checkpoint to go on from, or None.
        record: options of a ``Recorder`` for each method, which writes to ``study_dir``; None records no gradients.
        trackers: where records go as well; see ``require_trackers``.

    Raises:
        ValueError: workers differ in their settings, or the checkpoint is damaged or of something else.
        FileExistsError: the directory holds records already, and nothing is resumed.
    """
    require_agreement(config.as_record())
    data = config.load_data()
    if restarts() and plan is not None:
        resume = last_usable(plan.folder) or resume
    parameters = _parameters(config, data)
    if resume is not None:
        resume.require_model(parameters, data.digest)
    run = _TrainingRun(config, run_dir, data, parameters, plan, resume, record)
    with run.opened(command, trackers):
        for method in run.methods:
            run.train(method)
    if dist.get_rank() == 0:
        _conclude(run_dir)


def _conclude(run_dir: Path) -> None:
    from gaussiank_lab.report.page import write_report  # the other workers need no figures, and start faster without
    from gaussiank_lab.report.summary import summary_table

    console = Console()
    console.print(summary_table(read_records(run_dir)))
    console.print(f"Report: {write_report(run_dir)}", soft_wrap=True, highlight=False)


class _TrainingRun:
    """What all methods of a run share on this worker."""

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        data: Data,
        parameters: dict[str, list[int]],
        plan: CheckpointPlan | None,
        resume: Resume | None,
        record: Mapping[str, Any] | None,
    ) -> None:
        self._config, self._run_dir, self._data, self._parameters = config, run_dir, data, parameters
        self._plan, self._resume, self._record = plan, resume, record
        self._goes_on = bool(restarts()) or (resume is not None and run_dir.resolve() == resume.run_dir)
        self._recorder: Recorder | None = None
        self._leads = dist.get_rank() == 0
        self._console = Console()
        self._writer: RecordWriter | None = None
        self._progress: LiveProgress | None = None
        self._trackers: list[Tracker] = []

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods that are not finished."""
        methods = self._config.methods
        return methods if self._resume is None else methods[methods.index(self._resume.manifest.method) :]

    @contextlib.contextmanager
    def opened(self, command: str, trackers: tuple[str, ...]) -> Iterator[None]:
        """Open what rank 0 writes to."""
        with contextlib.ExitStack() as stack:
            if self._leads:
                if self._plan is not None:
                    stack.enter_context(CheckpointFolder(self._plan.folder).locked())
                begin = self._kept_records()
                self._writer = stack.enter_context(RecordWriter(self._run_dir, begin))
                self._progress = stack.enter_context(LiveProgress(self._console, self._data.task.metric))
                write_config(self._run_dir, self._config)
                self._trackers = open_trackers(trackers, self._run_dir, self._config.as_record())
                for tracker in self._trackers:
                    stack.callback(tracker.close)
                if not begin:
                    self._writer.write(_opening(self._config, self._data, command))
            yield

    def _kept_records(self) -> bytes | None:
        """Return the records that a resumed run goes on with; nothing where a failed attempt is replaced."""
        if self._resume is not None:
            return records_of(self._resume)
        return b"" if restarts() else None

    def report(self, record: dict[str, Any]) -> None:
        """Keep a record and show it, on rank 0."""
        if self._writer and self._progress:
            self._writer.write(record)
            self._progress.show(record)
            for tracker in self._trackers:
                tracker.write(record)

    def train(self, method: str) -> None:
        """Train with one method to its end."""
        resume, self._resume = self._resume, None  # the methods after it begin at their beginning
        saver = None if self._plan is None else Saver(self._plan, self._describe)
        recorder = self._recorder = self._make_recorder(method, resume)
        training = Training(self._config, method, self._data, self.report, saver, recorder)
        if resume is not None:
            state = load_worker(resume)
            training.restore(state)
            self._say_resumed(resume, state, training.steps)
        self.report({"kind": "begin", "method": method, "steps": training.steps, "done": training.done})
        if self._progress:
            self._progress.begin(method, training.steps, training.done)
        closing = training.run()
        if self._progress and "auto" in closing:
            self._progress.say(f"{method}, auto: {closing['auto']}")
        if recorder:
            recorder.close()
            if self._progress:
                self._progress.say(f"Gradients: {study_dir(self._run_dir, method)}, for gaussiank analyze")

    def _make_recorder(self, method: str, resume: Resume | None) -> Recorder | None:
        """Return what records a method's gradients; where the run goes on, it does so too."""
        if self._record is None:
            return None
        folder = study_dir(self._run_dir, method)
        if self._leads:
            if study := b"" if resume is None else study_of(resume):
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(folder / STUDY_NAME, study)
            elif self._goes_on:  # left by a start whose steps are taken again, as in the run's records
                (folder / STUDY_NAME).unlink(missing_ok=True)
        return Recorder(folder, **self._record, resume=resume is not None)

    def _say_resumed(self, resume: Resume, state: WorkerState, steps: int) -> None:
        manifest, workers = resume.manifest, dist.get_world_size()
        config = self._config.as_record()
        length = {name: config[name] for name in LENGTH if config[name] != manifest.config.get(name)}
        record = {"kind": "resume", "method": manifest.method, "step": manifest.step, "checkpoint": str(resume.path)}
        changes = {"workers": workers, "mass_change": state.mass_change, **({"config": length} if length else {})}
        self.report({**record, **changes})
        if self._progress:
            changed = [name for name, value in _versions().items() if value != manifest.versions.get(name)]
            if changed:
                self._progress.say(f"Saved with another {', '.join(changed)}: the last bits may differ.")
            self._progress.say(f"Resumed {manifest.method} after step {manifest.step}: {resume.path}")
            if length:
                self._progress.say(f"It ends after step {steps} now, with the learning rates of a run of that length.")
            if state.mass_change is not None:
                self._progress.say(
                    f"Residuals of {manifest.world_size} workers went to {workers}: the sum over workers of residual / "
                    f"workers changed by {state.mass_change:.1e} of itself."
                )

    def _describe(self, method: str, step: int) -> Manifest:
        """Describe a checkpoint that is being written; on rank 0."""
        assert self._plan is not None  # there is a saver
        assert self._writer is not None  # on rank 0
        size_bytes, crc32 = self._writer.sync()
        return Manifest(
            form=self._plan.form,
            world_size=dist.get_world_size(),
            method=method,
            step=step,
            config=self._config.as_record(),
            parameters=self._parameters,
            data_digest=self._data.digest,
            run_dir=os.path.relpath(self._run_dir.resolve(), self._plan.folder.resolve()),
            records_bytes=size_bytes,
            records_crc32=crc32,
            every=self._plan.every,
            keep=self._plan.keep,
            versions=_versions(),
            study=self._study(),
        )

    def _study(self) -> dict[str, Any] | None:
        """Say what is recorded of the gradients, and how far that has come."""
        if self._record is None or self._recorder is None:
            return None
        size_bytes, crc32 = self._recorder.written
        return {**self._record, "size_bytes": size_bytes, "crc32": crc32}


def _parameters(config: TrainConfig, data: Data) -> dict[str, list[int]]:
    with torch.device("meta"):
        model = config.spec.build(data.outputs)
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


def _versions() -> dict[str, str]:
    """Name what the bits of a training depend on beside its settings."""
    return {
        "gaussiank": gaussiank.__version__,
        "torch": str(torch.__version__),
        "processor": cpu_name(),
        "number of threads": str(torch.get_num_threads()),
    }


def _opening(config: TrainConfig, data: Data, command: str) -> dict[str, Any]:
    return {
        "kind": "run",
        "format": 1,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gaussiank": gaussiank.__version__,
        "torch": str(torch.__version__),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads_per_worker": torch.get_num_threads(),
            "python": platform.python_version(),
            "system": platform.system(),
            "backend": dist.get_backend(),
        },
        "config": config.as_record(),
        "model": {"name": config.model, "numel": config.spec.parameters(data.outputs)},
        "data": {"train": len(data.train), "test": len(data.test), "unit": data.train.unit, "digest": data.digest},
        "metric": data.task.metric.as_record(),
        "command": command,
    }
