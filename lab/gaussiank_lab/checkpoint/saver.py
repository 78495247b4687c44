"""Writing checkpoints while training goes on, and the state of a worker in them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank.reshard import at_agreed, reshard, sources
from gaussiank_lab.checkpoint.format import FORMS, CheckpointFolder, FormName, Manifest, Place, SavedPart, State
from gaussiank_lab.checkpoint.resume import Resume


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every global generator, as tensors and plain values.

    Example:
        >>> state = random_state(torch.device("cpu"))
        >>> first = random.random(), float(np.random.random()), float(torch.rand(()))
        >>> restore_random_state(state, torch.device("cpu"))
        >>> (random.random(), float(np.random.random()), float(torch.rand(()))) == first
        True
    """
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002  a user's code may draw from the global generator
    assert isinstance(numpy, dict)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "kind": numpy["bit_generator"],
            "words": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "place": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set every global generator to a saved state."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(  # noqa: NPY002  a user's code may draw from the global generator
        {
            "bit_generator": numpy["kind"],
            "state": {"key": numpy["words"].numpy().astype(np.uint32), "pos": numpy["place"]},
            "has_gauss": numpy["has_gauss"],
            "gauss": numpy["gauss"],
        }
    )


@dataclass(frozen=True)
class WorkerState:
    """State of one worker, ready to load.

    Args:
        shared: what all workers have alike.
        compression: for ``Compression.load_state_dict``.
        random: state of the global generators; None on a worker that did not exist before.
        mass_change: by what part of itself the conserved mass of the residuals has changed; None when the number of
            workers is the same and nothing has moved.
    """

    shared: dict[str, Any]
    compression: dict[str, Any]
    random: dict[str, Any] | None
    mass_change: float | None


def load_worker(resume: Resume) -> WorkerState:
    """Load this worker's state, and verify every byte of it; within a process group.

    With another number of workers, residuals and velocities are shared out anew by ``gaussiank.reshard``.

    Raises:
        ValueError: a file is missing or damaged; names it.
    """
    rank, world_size, saved = dist.get_rank(), dist.get_world_size(), resume.manifest.world_size
    wanted = (rank,) if saved == world_size else sources(rank, world_size, saved)
    resume.require_whole(wanted)
    form = FORMS[resume.manifest.form]
    shared = form.read_shared(resume.path)
    owned = [form.read_own(resume.path, source) for source in wanted]
    random = owned[0]["random"] if rank < saved else None
    states = [own["compression"] for own in owned]
    if saved == world_size:
        return WorkerState(shared, states[0], random, None)
    compression = reshard(states, rank, world_size)
    counted = (
        [at_agreed(state) for state in states] if rank < saved else []
    )  # with more workers than before, several share one saved state
    return WorkerState(shared, compression, random, _mass_change(counted, saved, compression, world_size))


def _mass_change(before: Sequence[Mapping[str, Any]], saved: int, after: Mapping[str, Any], world_size: int) -> float:
    """Return ``|m' - m| / |m|`` for ``m = sum over workers of residual / workers``, over all parameters at once."""
    change = norm = 0.0
    for name, numel in after["feedback"]["parameters"].items():
        mass = torch.zeros(2, numel, dtype=torch.float64)
        for state in before:
            mass[0] += _residual(state, name, numel) / saved
        mass[1] += _residual(after, name, numel) / world_size
        dist.all_reduce(mass)
        change += float((mass[1] - mass[0]).square().sum())
        norm += float(mass[0].square().sum())
    return math.sqrt(change / norm) if norm else 0.0


def _residual(state: Mapping[str, Any], name: str, numel: int) -> Tensor:
    held: Tensor | None = state["feedback"]["residual"].get(name)
    return torch.zeros(numel, dtype=torch.float64) if held is None else held.double()


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

    def _finish(self, place: Place, method: str, parts: tuple[SavedPart, ...]) -> None:
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
