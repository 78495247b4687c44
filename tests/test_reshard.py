from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tests.each import each

from gaussiank.feedback import ErrorFeedback
from gaussiank.layout import Layout
from gaussiank.momentum import MomentumCorrection
from gaussiank.reshard import reshard, sources
from gaussiank.sparse import SparseGradient

SIZES = {"a": 40, "b": 3}
LAYOUT = Layout(("a", "b"), (40, 3))


def saved(world_size: int, step: int = 5) -> list[dict[str, Any]]:
    """What real feedback of every rank saves after a step that sent the first entry only."""
    states = []
    for rank in range(world_size):
        feedback = ErrorFeedback(SIZES, momentum=MomentumCorrection(0.9), world_size=world_size)
        grad = torch.randn(43, generator=torch.Generator().manual_seed(rank))
        feedback.take(LAYOUT, grad, lambda u: SparseGradient.pick(u, torch.tensor([0], dtype=torch.int32)))
        feedback.record_finite(torch.tensor(True))
        feedback.seal()
        assert feedback.settle()
        states.append({"format": 1, "rank": rank, "world_size": world_size, "step": step,
                       "feedback": feedback.state_dict(), "hints": {"a..b": torch.tensor(0.5)},
                       "routes": {"a..b/43": torch.tensor([world_size])}})  # fmt: skip
    return states


def resharded(states: list[dict[str, Any]], world_size: int) -> list[dict[str, Any]]:
    return [
        reshard([states[source] for source in sources(rank, world_size, len(states))], rank, world_size)
        for rank in range(world_size)
    ]


def mass(states: list[dict[str, Any]], kind: str, name: str) -> torch.Tensor:
    return torch.stack([state["feedback"][kind][name].double() for state in states]).sum(0) / len(states)


@each("after", [1, 2, 3, 4, 6, 8])
@each("before", [1, 2, 3, 4, 7])
def test_mass_is_conserved(before: int, after: int) -> None:
    states = saved(before)
    moved = resharded(states, after)
    for kind in ("residual", "velocity"):
        for name in SIZES:
            torch.testing.assert_close(mass(moved, kind, name), mass(states, kind, name), rtol=3e-7, atol=1e-7)


@each(("before", "after"), [(1, 2), (2, 4), (3, 3), (3, 6), (4, 4)])
def test_mass_is_conserved_to_the_bit_when_nothing_is_added(before: int, after: int) -> None:
    states = saved(before)
    moved = resharded(states, after)
    for name in SIZES:
        assert torch.equal(
            mass(moved, "residual", name) * after, mass(states, "residual", name) * before * after / before
        )
        for rank, state in enumerate(moved):
            assert torch.equal(state["feedback"]["residual"][name], states[rank % before]["feedback"]["residual"][name])


def test_new_states_load() -> None:
    for rank, state in enumerate(resharded(saved(4), 2)):
        assert (state["rank"], state["world_size"], state["step"]) == (rank, 2, 5)
        feedback = ErrorFeedback(SIZES, momentum=MomentumCorrection(0.9), world_size=2)
        feedback.load_state_dict(state["feedback"])
        assert torch.equal(feedback.residual("a"), state["feedback"]["residual"]["a"])


def test_saved_states_are_not_modified() -> None:
    states, twins = saved(4), saved(4)
    for state in resharded(states, 3):
        for tensor in state["feedback"]["residual"].values():
            tensor.zero_()
    for state, twin in zip(states, twins, strict=True):
        for name in SIZES:
            assert torch.equal(state["feedback"]["residual"][name], twin["feedback"]["residual"][name])


def test_hints_stay_only_where_the_residual_does() -> None:
    assert resharded(saved(2), 4)[3]["hints"] == {"a..b": torch.tensor(0.5)}
    assert resharded(saved(4), 2)[1]["hints"] == {}


def test_what_a_collective_has_learnt_stays_with_as_many_workers_alone() -> None:
    assert resharded(saved(2), 2)[1]["routes"] == {"a..b/43": torch.tensor([2])}
    assert resharded(saved(2), 4)[3]["routes"] == resharded(saved(4), 2)[1]["routes"] == {}
    states = saved(4)
    for state in states:
        del state["routes"]  # as older states are
    assert resharded(states, 2)[0]["routes"] == {}


def test_a_part_that_never_saw_a_parameter_counts_as_zeros() -> None:
    states = saved(2)
    del states[1]["feedback"]["residual"]["b"]
    moved = reshard(states, rank=0, world_size=1)["feedback"]["residual"]["b"]
    assert torch.equal(moved, states[0]["feedback"]["residual"]["b"] / 2)


@each("world_size", [1, 2, 3, 5, 8])
def test_every_source_is_taken_over(world_size: int) -> None:
    taken = {source for rank in range(world_size) for source in sources(rank, world_size, 5)}
    assert taken == set(range(5))


@each(
    ("change", "sentence"),
    [
        (
            {"rank": 3},
            "states must be those of ranks (0, 2), got (0, 3). Pass what gaussiank.reshard.sources names, in order.",
        ),
        ({"step": 6}, "step must be the same in all states, got 5 of rank 0 and 6 of rank 2."),
        ({"format": 2}, "format must be the same in all states, got 1 of rank 0 and 2 of rank 2."),
    ],
)
def test_refuses_parts_of_another_checkpoint(change: dict[str, Any], sentence: str) -> None:
    states = saved(4)
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        reshard([states[0], {**states[2], **change}], rank=0, world_size=2)


def test_refuses_another_model_and_nothing_at_all() -> None:
    states = saved(4)
    states[2]["feedback"]["parameters"] = {"a": 40}
    with pytest.raises(ValueError, match=r"^parameters must be the same in all states, got others of rank 2 than of"):
        reshard([states[0], states[2]], rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"^states must hold what the sources saved, got none\."):
        reshard([], rank=0, world_size=2)


def test_refuses_impossible_ranks() -> None:
    with pytest.raises(ValueError, match=r"^rank must be in \[0, 1\], got 2\."):
        sources(2, 2, 4)
    with pytest.raises(ValueError, match=r"^world_size must be at least 1, got 0\."):
        sources(0, 0, 4)
