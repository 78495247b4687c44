"""What one worker goes on with: its own saved state, or, with another number of workers, its share of theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank.reshard import reshard, sources
from gaussiank_lab.checkpoint.forms import FORMS
from gaussiank_lab.checkpoint.resume import Resume


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
    counted = states if rank < saved else []  # with more workers than before, several share one saved state
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
