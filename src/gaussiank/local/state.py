"""What is saved of local steps: one state a worker, whose weights and residuals are kept by parameter."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

from gaussiank.reshard import at_agreed

from .fragment import Fragment

FORMAT = 1
_DECIDE = (
    "sync_every", "density", "compressor", "scope", "wire", "collective", "decay", "outer_optimizer", "sync_delay",
    "mixing", "buffers", "residual_dtype",
)  # fmt: skip
_OLDER = "sync_every=30, density=1 / 64, decay=0.95"  # defaults of states that do not tell their settings


def _deciding(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(settings[name]) for name in _DECIDE}


def warn_of_settings(state: Mapping[str, Any], settings: Mapping[str, Any], group: dist.ProcessGroup | None) -> None:
    """Warn, on rank 0, where a state is of a run with other settings: it then goes on to other bits."""
    saved, own = state.get("settings"), _deciding(settings)
    if saved is None or dist.get_rank(group) != 0:
        return
    others = [name for name in own if saved.get(name, own[name]) != own[name]]
    if others:
        theirs, ours = (", ".join(f"{name}={one[name]}" for name in others) for one in (saved, own))
        warnings.warn(
            f"state is of a run with {theirs}, LocalSteps was made with {ours}: it goes on with these, to other bits. "
            "Make it with the state's to go on as saved.",
            stacklevel=4,
        )


def _require_turns(state: Mapping[str, Any], sync_every: int) -> None:
    """Raise where a state that does not tell its settings has counted other rounds than ``sync_every`` begins.

    Raises:
        ValueError: so it is.
    """
    if "settings" in state:
        return
    for number, one in enumerate(state["rounds"]):
        first = (number + 1) * sync_every // len(state["rounds"])
        begun = max(0, (state["step"] - first) // sync_every + 1)
        if not begun <= one["exchanges"] <= begun + 1:  # finish adds one
            raise ValueError(
                f"sync_every must be that of the state, got {sync_every} for {one['exchanges']} rounds in "
                f"{state['step']} steps. Its version had the defaults {_OLDER}: give LocalSteps these, "
                "or what it was made with."
            )


def gathered(fragments: Sequence[Fragment], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all fragments save, in the form that ``gaussiank.reshard`` takes, and the settings of the run."""
    states = [fragment.state_dict() for fragment in fragments]
    feedback = {
        key: {name: value for state in states for name, value in state["feedback"][key].items()}
        for key in ("parameters", "residual", "velocity")
    }
    merged = {
        key: {name: value for state in states for name, value in state[key].items()}
        for key in ("agreed", "local", "hints", "routes")
    }
    return {
        **merged,
        "settings": _deciding(settings),
        "feedback": {"format": states[0]["feedback"]["format"], **feedback},
        "fragments": [list(fragment.names) for fragment in fragments],
        "rounds": [{key: state[key] for key in ("format", "step", "exchanges")} for state in states],
        "flights": {number: state["flight"] for number, state in enumerate(states) if state["flight"]},
    }


def parted(state: Mapping[str, Any], fragments: Sequence[Fragment], sync_every: int) -> list[dict[str, Any]]:
    """Undo ``gathered``: return each fragment's own state.

    Raises:
        ValueError: another model, or a round is under way and the fragments are others, or rounds of a state that does
            not tell its settings are not those of ``sync_every``.
    """
    _require_turns(state, sync_every)
    same = state["fragments"] == [list(fragment.names) for fragment in fragments]
    if state["flights"] and not same:
        raise ValueError(
            f"fragments must be those of the state while rounds are under way, got {len(fragments)} for one with "
            f"{len(state['fragments'])}. Load with as many fragments, or save after local.finish()."
        )
    wanted = {name for fragment in fragments for name in fragment.names}
    for name in sorted(wanted ^ set(state["feedback"]["parameters"])):
        whose = "the model alone" if name in wanted else "the state alone"
        raise ValueError(f"state must be of this model, got parameter {name} in {whose}. Load the state of this model.")
    last = max(state["rounds"], key=lambda one: int(one["step"]))
    return [
        _part(state, fragment, state["rounds"][number] if same else last, state["flights"].get(number))
        for number, fragment in enumerate(fragments)
    ]


def joined(
    state: Mapping[str, Any] | None, saved: Sequence[int | None], group: dist.ProcessGroup | None
) -> dict[str, Any]:
    """Return the state that a worker goes on from where some have none; call it on every worker.

    Args:
        state: of this worker, None of a new one.
        saved: of each worker the number of workers that its state is of, None of a new one.
        group: of all workers.

    Raises:
        ValueError: some of the saved states are missing.
    """
    old = [rank for rank, workers in enumerate(saved) if workers is not None]
    if not old or any(saved[rank] != len(old) for rank in old):
        most = max((saved[rank] or 0 for rank in old), default=0)
        raise ValueError(
            f"states must be those of all workers that were saved, got {len(old)} of {most}: what others keep "
            "would be lost. Save to a folder, and load that."
        )
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    own = None if state is None else _among_more(state, rank, world_size)
    shared = [_without_own(own) if own is not None and rank == old[0] else None]
    source = dist.get_process_group_ranks(group)[old[0]]
    dist.broadcast_object_list(shared, source, group=group)
    return own or {**(shared[0] or {}), "rank": rank, "local": (shared[0] or {})["agreed"]}


def _among_more(state: Mapping[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """Return a worker's state where others have joined that bring nothing: scaled, so that the mass stays the same.

    Args:
        state: of this worker among those that saved. Not modified.
        rank: its rank now.
        world_size: number of workers now.
    """
    state = at_agreed(state)
    factor = world_size / state["world_size"]
    feedback = state["feedback"]
    scaled = {**feedback, "residual": {name: kept * factor for name, kept in feedback["residual"].items()}}
    return {**state, "rank": rank, "world_size": world_size, "feedback": scaled, "hints": {}, "routes": {}}


def _without_own(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a worker's state a new one takes over: all but residual, local weights, and inner optimizers."""
    feedback = {**state["feedback"], "residual": {}}
    shared = {key: value for key, value in state.items() if key not in ("local", "optimizers", "buffers")}
    return {**shared, "feedback": feedback}


def _part(state: Mapping[str, Any], fragment: Fragment, rounds: Mapping[str, Any], flight: Any) -> dict[str, Any]:
    names, feedback = set(fragment.names), state["feedback"]
    vectors = [f"{vector.layout.names[0]}..{vector.layout.names[-1]}" for vector in fragment.vectors]
    places = [f"{text}/{vector.layout.numel}" for text, vector in zip(vectors, fragment.vectors, strict=True)]
    return {
        **rounds,
        "rank": state["rank"],
        "world_size": state["world_size"],
        "feedback": {
            "format": feedback["format"],
            **{
                key: {name: value for name, value in feedback[key].items() if name in names}
                for key in ("parameters", "residual", "velocity")
            },
        },
        "hints": {key: hint for key, hint in state["hints"].items() if key in names or key in vectors},
        "routes": {key: route for key, route in state["routes"].items() if key.split(" ", 1)[-1] in places},
        "agreed": state["agreed"],
        "local": state["local"],
        "flight": flight,
    }
