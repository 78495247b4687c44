"""Whether a saved state fits: checked as a whole before anything is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gaussiank.ops import RESIDUAL_DTYPES

FORMAT = 1


def require_fitting(state: Mapping[str, Any], parameters: Mapping[str, int], *, moving: bool) -> None:
    """Raise unless a saved state is of this format, these parameters and this momentum setting.

    Args:
        state: what ``ErrorFeedback.state_dict`` returned.
        parameters: name -> numel of every parameter.
        moving: whether there is a momentum correction.

    Raises:
        ValueError: the first thing that does not fit.
    """
    _require_format(state, FORMAT)
    _require_same_parameters(state["parameters"], parameters)
    residual, velocity = dict(state["residual"]), dict(state["velocity"])
    if residual and bool(velocity) != moving:
        has, want = ("has", "has none") if velocity else ("has no", "has one")
        raise ValueError(
            f"state must fit the momentum correction, got a state that {has} velocity for a run that {want}. "
            "Use the same momentum setting."
        )
    for name in sorted(velocity.keys() ^ residual.keys() if velocity else ()):
        raise ValueError(
            f"state must have residual and velocity of {name}, got one of them. Load the state as it was saved."
        )
    for name, saved in [*residual.items(), *velocity.items()]:
        if not isinstance(saved, Tensor) or saved.dtype not in RESIDUAL_DTYPES:
            raise ValueError(
                f"state of {name} must be a tensor of real numbers, got {getattr(saved, 'dtype', type(saved))}. "
                "Load the state as it was saved."
            )
        if saved.shape != (parameters[name],):
            raise ValueError(
                f"state of {name} must have {parameters[name]} entries, got shape {tuple(saved.shape)}. "
                "Load the state of this model."
            )


def require_same_worker(state: Mapping[str, Any], *, number: int, world_size: int, rank: int) -> None:
    """Raise unless a saved state is of a format with this number, and of a worker with this rank among as many.

    Raises:
        ValueError: the first thing that does not fit.

    Example:
        >>> require_same_worker({"format": 1, "world_size": 4, "rank": 0}, number=1, world_size=4, rank=0)
    """
    _require_format(state, number)
    for field, own in (("world_size", world_size), ("rank", rank)):
        if state[field] != own:
            raise ValueError(
                f"{field} of the state must be {own}, got {state[field]}. "
                "Load on each worker what that worker saved: compression.save(folder) and load(folder) do, for another "
                "number of workers too. A framework's checkpoint keeps rank 0's state alone."
            )


def _require_format(state: Mapping[str, Any], number: int) -> None:
    if state.get("format") != number:
        raise ValueError(
            f"state must have format {number}, got {state.get('format')!r}. Load it with the gaussiank that saved it."
        )


def _require_same_parameters(saved: Mapping[str, int], own: Mapping[str, int]) -> None:
    for name in sorted({*saved, *own}):
        if saved.get(name) != own.get(name):
            raise ValueError(
                f"state must be of this model, got {saved.get(name, 'no')} entries for parameter {name!r} where the "
                f"model has {own.get(name, 'no such parameter')}. Load the state of this model."
            )
