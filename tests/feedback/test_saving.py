"""States of the error feedback: what is saved goes on to the bit, and what does not fit is refused."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.each import each
from tests.feedback.test_error_feedback import (
    NUMEL,
    SIZES,
    TRUE,
    WHOLE,
    State,
    end,
    equal,
    filled,
    first,
    layouts,
    residual,
    top,
)

from gaussiank.feedback import ErrorFeedback
from gaussiank.layout import Layout
from gaussiank.momentum import MomentumCorrection

SETTINGS = [None, MomentumCorrection(0.9, masking=False)]


@each("momentum", SETTINGS, ids=["plain", "momentum"])
@each("through_file", [False, True], ids=["memory", "file"])
@each("groups", [["abcd"], ["dc", "ab"], ["a", "b", "c", "d"]], ids="+".join)
def test_saved_state_goes_on_to_the_bit(
    rng: torch.Generator, momentum: MomentumCorrection | None, through_file: bool, groups: list[str]
) -> None:
    feedback = filled(rng, momentum)
    state = feedback.state_dict()
    if through_file:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    resumed = ErrorFeedback(SIZES, momentum=momentum)
    resumed.load_state_dict(state)
    assert equal(resumed.state_dict(), feedback.state_dict())
    for _ in range(3):
        for layout in layouts(*groups):
            grad = torch.randn(layout.numel, generator=rng)
            ours, theirs = feedback.take(layout, grad, top(4)), resumed.take(layout, grad, top(4))
            assert torch.equal(ours.indices, theirs.indices)
            assert torch.equal(ours.values, theirs.values)
        assert end(feedback, *[TRUE] * len(groups))
        assert end(resumed, *[TRUE] * len(groups))
        assert equal(resumed.state_dict(), feedback.state_dict())


def test_loaded_residual_is_flushed_by_a_dense_step(rng: torch.Generator) -> None:
    feedback = filled(rng)
    resumed = ErrorFeedback(SIZES)
    resumed.load_state_dict(feedback.state_dict())
    grad = torch.zeros(NUMEL)
    assert resumed.take_all(WHOLE, grad)
    assert torch.equal(grad, residual(feedback))


def test_double_state_stays_double(rng: torch.Generator) -> None:
    feedback = ErrorFeedback({"w": 50})
    layout = Layout(("w",), (50,))
    feedback.take(layout, torch.randn(50, generator=rng, dtype=torch.float64), top(3))
    assert end(feedback, TRUE)
    resumed = ErrorFeedback({"w": 50})
    resumed.load_state_dict(feedback.state_dict())
    assert resumed.residual("w").dtype == torch.float64
    assert torch.equal(resumed.residual("w"), feedback.residual("w"))


def test_unfinished_step_is_not_saved(rng: torch.Generator) -> None:
    feedback = filled(rng, MomentumCorrection(0.9))
    before = feedback.state_dict()
    feedback.take(WHOLE, torch.randn(NUMEL, generator=rng), top(3))
    feedback.record_finite(TRUE)
    feedback.seal()
    assert equal(feedback.state_dict(), before)
    assert feedback.settle()
    assert not equal(feedback.state_dict(), before)


def test_loading_ends_the_step_under_way(rng: torch.Generator) -> None:
    feedback = filled(rng)
    before = feedback.state_dict()
    feedback.take(WHOLE, torch.randn(NUMEL, generator=rng), top(3))
    feedback.record_finite(TRUE)
    feedback.seal()
    feedback.load_state_dict(before)
    assert feedback.settle() is False
    assert equal(feedback.state_dict(), before)


def test_state_of_a_fresh_feedback_clears(rng: torch.Generator) -> None:
    feedback = filled(rng)
    feedback.load_state_dict(ErrorFeedback(SIZES).state_dict())
    assert not residual(feedback).any()
    assert feedback.take_all(WHOLE, torch.ones(NUMEL)) is False


def test_saved_tensors_are_copies(rng: torch.Generator) -> None:
    feedback = filled(rng, MomentumCorrection(0.9))
    state, untouched = feedback.state_dict(), feedback.state_dict()

    def spoil() -> None:
        for name in SIZES:
            state["residual"][name].fill_(math.nan)
            state["velocity"][name].fill_(math.nan)
            feedback.residual(name).fill_(math.nan)
        state["parameters"]["a"] = 5

    spoil()
    assert equal(feedback.state_dict(), untouched)
    state = feedback.state_dict()
    feedback.load_state_dict(state)
    spoil()
    assert equal(feedback.state_dict(), untouched)


def without(state: State, key: str, name: str) -> dict[str, Any]:
    return {**state, key: {other: value for other, value in state[key].items() if other != name}}


REFUSALS: dict[str, tuple[Callable[[State], State], str]] = {
    "format": (
        lambda s: {**s, "format": 2},
        "state must have format 1, got 2. Load it with the gaussiank that saved it.",
    ),
    "no format": (lambda s: {}, "state must have format 1, got None. Load it with the gaussiank that saved it."),
    "fewer parameters": (
        lambda s: without(s, "parameters", "b"),
        "state must be of this model, got no entries for parameter 'b' where the model has 7. Load the state of this",
    ),
    "more parameters": (
        lambda s: {**s, "parameters": {**s["parameters"], "extra": 4}},
        "state must be of this model, got 4 entries for parameter 'extra' where the model has no such parameter.",
    ),
    "another length": (
        lambda s: {**s, "parameters": {**s["parameters"], "d": 61}},
        "state must be of this model, got 61 entries for parameter 'd' where the model has 62.",
    ),
    "another shape": (
        lambda s: {**s, "residual": {**s["residual"], "d": torch.zeros(31, 2)}},
        "state of d must have 62 entries, got shape (31, 2). Load the state of this model.",
    ),
}


@each("momentum", SETTINGS, ids=["plain", "momentum"])
@each("case", REFUSALS)
def test_refuses_a_state_that_does_not_fit(
    rng: torch.Generator, case: str, momentum: MomentumCorrection | None
) -> None:
    feedback = filled(rng, momentum)
    before = feedback.state_dict()
    change, message = REFUSALS[case]
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        feedback.load_state_dict(change(filled(rng, momentum).state_dict()))
    assert equal(feedback.state_dict(), before)


@each(
    ("saved", "own", "got"),
    [
        (SETTINGS[0], SETTINGS[1], "a state that has no velocity for a run that has one"),
        (SETTINGS[1], SETTINGS[0], "a state that has velocity for a run that has none"),
    ],
    ids=["without into with", "with into without"],
)
def test_refuses_a_state_of_another_momentum_setting(
    rng: torch.Generator, saved: MomentumCorrection | None, own: MomentumCorrection | None, got: str
) -> None:
    feedback = filled(rng, own)
    before = feedback.state_dict()
    message = f"state must fit the momentum correction, got {got}. Use the same momentum setting."
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        feedback.load_state_dict(filled(rng, saved).state_dict())
    assert equal(feedback.state_dict(), before)


def test_refuses_a_state_with_a_velocity_missing(rng: torch.Generator) -> None:
    feedback = filled(rng, MomentumCorrection(0.9))
    before = feedback.state_dict()
    with pytest.raises(ValueError, match=r"^state must have residual and velocity of c, got one of them"):
        feedback.load_state_dict(without(feedback.state_dict(), "velocity", "c"))
    assert equal(feedback.state_dict(), before)


def test_loaded_residual_goes_to_the_device_of_the_gradient(rng: torch.Generator) -> None:
    feedback = filled(rng)
    pair = layouts("bc")[0]
    assert feedback.take(pair, torch.zeros(8, device="meta"), first).values.device.type == "meta"
    resumed = ErrorFeedback(SIZES)
    resumed.load_state_dict(filled(rng).state_dict())
    single = layouts("b")[0]
    assert resumed.take(single, torch.zeros(7, device="meta"), first).values.device.type == "meta"


def test_loaded_residual_takes_the_dtype_of_the_gradient(rng: torch.Generator) -> None:
    double = ErrorFeedback({"w": 5})
    double.take(Layout(("w",), (5,)), torch.randn(5, generator=rng, dtype=torch.float64), top(1))
    assert end(double, TRUE)
    resumed = ErrorFeedback({"w": 5})
    resumed.load_state_dict(double.state_dict())
    assert resumed.take(Layout(("w",), (5,)), torch.zeros(5), top(1)).values.dtype == torch.float32
