"""Write checkpoints while a run goes on: every worker its part, then one manifest, or nothing at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from gaussiank_lab.checkpoint.folder import CheckpointFolder, Place
from gaussiank_lab.checkpoint.forms import FORMS, FormName, State
from gaussiank_lab.checkpoint.manifest import Manifest, Part


@dataclass(frozen=True)
class CheckpointPlan:
    """Say where, when and how checkpoints are written.

    Args:
        folder: their directory, which every worker sees.
        every: steps between two; the last step of a method gets one too.
        keep: how many of the last are kept.
        form: ``plain`` or ``dcp``.

    Raises:
        ValueError: a setting out of its range.
    """

    folder: Path
    every: int
    keep: int = 3
    form: FormName = "plain"

    def __post_init__(self) -> None:
        for argument, value in (("checkpoint_every", self.every), ("keep", self.keep)):
            if value < 1:
                raise ValueError(f"{argument} must be at least 1, got {value}. Raise it.")
        if self.form not in FORMS:
            raise ValueError(
                f"checkpoint_form must be one of {', '.join(FORMS)}, got {self.form!r}. Choose one of them."
            )


class Saved(NamedTuple):
    """A checkpoint that was written: where, how large, and how long every worker waited for it."""

    path: Path
    size_bytes: int
    seconds: float

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"path": str(self.path), "size_bytes": self.size_bytes, "seconds": self.seconds}


class Saver:
    """Write the checkpoints of one run; every worker has one and calls it at the same steps.

    Args:
        plan: where, when and how.
        describe: gives the manifest without its parts, on rank 0 alone.
    """

    def __init__(self, plan: CheckpointPlan, describe: Callable[[str, int], Manifest]) -> None:
        self._plan = plan
        self._describe = describe
        self._folder = CheckpointFolder(plan.folder)

    def due(self, step: int, last: int) -> bool:
        """Tell whether a checkpoint belongs after this step."""
        return step == last or step % self._plan.every == 0

    def save(self, place: Place, method: str, own: State, shared: State) -> Saved:
        """Write a checkpoint; when it returns on rank 0, it is on disk.

        Args:
            place: where in the run.
            method: the method under way.
            own: this worker's state.
            shared: the state that all workers have alike.

        Raises:
            RuntimeError: a worker could not write its part; names it, on every worker. Earlier checkpoints are whole.
        """
        started = time.perf_counter()
        rank = dist.get_rank()
        unfinished = self._folder.unfinished(place, method)
        _together(lambda: self._folder.begin(place, method) if rank == 0 else None, place, unfinished)
        try:
            written = _together(lambda: FORMS[self._plan.form].write(unfinished, own, shared), place, unfinished)
            parts = tuple(part for parts in written for part in parts)
            size_bytes = sum(part.size_bytes for part in parts)
            _together(lambda: self._finish(place, method, parts) if rank == 0 else None, place, unfinished)
        except RuntimeError:
            if rank == 0:
                self._folder.discard(unfinished)
            raise
        return Saved(unfinished.with_name(unfinished.name.removeprefix(".")), size_bytes, time.perf_counter() - started)

    def _finish(self, place: Place, method: str, parts: tuple[Part, ...]) -> None:
        unfinished = self._folder.unfinished(place, method)
        missing = [part for part in parts if not (unfinished / part.name).is_file()]
        if missing:
            raise FileNotFoundError(f"{missing[0].name} of rank {missing[0].rank} is not there; share the directory")
        replace(self._describe(method, place.step), parts=parts).write(unfinished)
        self._folder.publish(unfinished)
        self._folder.prune(self._plan.keep)


def _together(work: Callable[[], Any], place: Place, path: Path) -> list[Any]:
    """Do something on every worker; all learn what each returned, or all raise what one raised."""
    try:
        mine: tuple[Any, str] = (work(), "")
    except Exception as error:  # noqa: BLE001  whatever it is, the others must learn of it or they wait for ever
        mine = (None, str(error) or type(error).__name__)
    outcomes: list[tuple[Any, str]] = [mine] * dist.get_world_size()
    dist.all_gather_object(outcomes, mine)
    for rank, (_, failed) in enumerate(outcomes):
        if failed:
            raise RuntimeError(
                f"checkpoint of step {place.step} must be written by every worker, got an error on rank {rank}: "
                f"{failed} ({path.parent}). Earlier checkpoints are whole; make room or correct it, and resume."
            )
    return [value for value, _ in outcomes]
