"""Residuals for another number of workers: who takes over whose, and by which factor, so that no mass is lost.

What training sees of the residuals is ``sum over workers of residual / world_size``. That is what stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Any]


def sources(rank: int, world_size: int, saved_world_size: int) -> tuple[int, ...]:
    """Name the saved ranks whose state a new rank takes over: those equal to it modulo the smaller number of workers.

    Args:
        rank: new rank, 0 to ``world_size - 1``.
        world_size: new number of workers.
        saved_world_size: number of workers that saved.

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> [sources(rank, 2, saved_world_size=4) for rank in range(2)]
        [(0, 2), (1, 3)]
        >>> [sources(rank, 4, saved_world_size=2) for rank in range(4)]
        [(0,), (1,), (0,), (1,)]
    """
    for argument, value in (("world_size", world_size), ("saved_world_size", saved_world_size)):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}. Give the number of workers.")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size - 1}], got {rank}. Give this worker's own.")
    if world_size >= saved_world_size:
        return (rank % saved_world_size,)
    return tuple(range(rank, saved_world_size, world_size))


def reshard(states: Sequence[State], rank: int, world_size: int) -> dict[str, Any]:
    """Make one new worker's state of what its ``sources`` saved with ``Compression.state_dict``.

    A residual is shared among the new workers that take it over and scaled by ``world_size / saved_world_size``, so
    ``sum of residual / world_size`` over all new workers is what it was over the saved ones: to the bit when every
    factor is a power of two and no two residuals are added (2 workers to 4, or as many as before), within the rounding
    of one product and one sum an entry otherwise. Momentum velocities move in the same way. What ``LocalSteps`` has
    learnt since its last round joins the residual before, and every worker begins again at the agreed weights.

    Args:
        states: states of ``sources(rank, world_size, saved)``, in that order. Not modified.
        rank: new rank.
        world_size: new number of workers.

    Returns:
        A state for ``Compression.load_state_dict`` on that rank.

    Raises:
        ValueError: a state is missing, of another step, model or format than the first, or of a rank that is no source.

    Example:
        >>> def state(rank, residual):
        ...     feedback = {"format": 1, "parameters": {"w": 2}, "residual": {"w": residual}, "velocity": {}}
        ...     return {"format": 1, "rank": rank, "world_size": 2, "step": 7, "feedback": feedback, "hints": {}}
        >>> saved = [state(0, torch.tensor([4.0, 0.0])), state(1, torch.tensor([2.0, 6.0]))]
        >>> reshard(saved, rank=0, world_size=1)["feedback"]["residual"]["w"]  # half of both: one worker's mean
        tensor([3., 3.])
    """
    if not states:
        raise ValueError("states must hold what the sources saved, got none. See gaussiank.reshard.sources.")
    states = [at_agreed(state) for state in states]
    first = states[0]
    saved_world_size = first["world_size"]
    wanted = sources(rank, world_size, saved_world_size)
    _require_alike(states, wanted)
    sharers = len(range(rank % saved_world_size, world_size, saved_world_size)) if world_size > saved_world_size else 1
    factor = world_size / saved_world_size / sharers
    feedback = first["feedback"]
    moved = {
        kind: _scaled_sums([state["feedback"][kind] for state in states], feedback["parameters"], factor)
        for kind in ("residual", "velocity")
    }
    # thresholds hold for residuals of this size alone, and what a collective has learnt for as many workers alone
    hints = {key: hint.clone() for key, hint in first["hints"].items()} if factor == 1 else {}
    same = world_size == saved_world_size
    routes = {key: hint.clone() for key, hint in first.get("routes", {}).items()} if same else {}
    moved_state = {"feedback": {**feedback, **moved}, "hints": hints, "routes": routes}
    if "precondition" in first:  # the same on all workers; second moments are of a mean over so many
        rows = first["precondition"]
        moments = {name: moment * (saved_world_size / world_size) for name, moment in rows["moment"].items()}
        moved_state["precondition"] = {**rows, "moment": moments}
    return {**first, "rank": rank, "world_size": world_size, **moved_state}


def at_agreed(state: State) -> State:
    """Return a state of ``LocalSteps`` with its local weights at the agreed ones, their difference in its residual."""
    if "agreed" not in state:
        return state
    agreed, start = state["agreed"], dict(state["agreed"])
    flights = {number: dict(flight) for number, flight in state["flights"].items()}
    for flight in flights.values():  # what was learnt before it began is in the residual, or on its way
        start.update(flight["before"])
        flight["before"] = {name: agreed[name].to(before.dtype) for name, before in flight["before"].items()}
    residual = dict(state["feedback"]["residual"])
    for name, local in state["local"].items():
        learnt = start[name].to(local.dtype).to(agreed[name].dtype) - local
        residual[name] = residual[name] + learnt if name in residual else learnt
    local = {name: agreed[name].to(local.dtype) for name, local in state["local"].items()}
    return {**state, "local": local, "flights": flights, "feedback": {**state["feedback"], "residual": residual}}


def _require_alike(states: Sequence[State], wanted: tuple[int, ...]) -> None:
    first = states[0]
    if "mesh" in first:
        raise ValueError(
            f"states must hold whole parameters, got shards of a mesh of {first['mesh']}. Save compression.dtensors() "
            "with torch.distributed.checkpoint, and load it with compression.load_dtensors on any mesh."
        )
    ranks = tuple(state["rank"] for state in states)
    if ranks != wanted:
        raise ValueError(
            f"states must be those of ranks {wanted}, got {ranks}. Pass what gaussiank.reshard.sources names, in order."
        )
    for state in states:
        for field in ("format", "world_size", "step"):
            if state[field] != first[field]:
                raise ValueError(
                    f"{field} must be the same in all states, got {first[field]} of rank {first['rank']} and "
                    f"{state[field]} of rank {state['rank']}. Load the parts of one checkpoint."
                )
        if state["feedback"]["parameters"] != first["feedback"]["parameters"]:
            raise ValueError(
                f"parameters must be the same in all states, got others of rank {state['rank']} than of rank "
                f"{first['rank']}. Load the parts of one checkpoint."
            )


def _scaled_sums(
    parts: Sequence[Mapping[str, Tensor]], parameters: Mapping[str, int], factor: float
) -> dict[str, Tensor]:
    """Add up what each part holds of each parameter; a part that never saw a parameter holds zeros of it."""
    sums: dict[str, Tensor] = {}
    for name in parameters:
        held = [_wide(part[name]) for part in parts if name in part]
        if held:
            sums[name] = torch.stack(held).sum(0) * factor if len(held) > 1 else held[0] * factor
    return sums


def _wide(vector: Tensor) -> Tensor:
    """Return a residual in 32 bits at least: of 16, a sum would be rounded, and not at random."""
    return vector.to(torch.promote_types(vector.dtype, torch.float32))
