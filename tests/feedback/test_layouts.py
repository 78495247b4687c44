"""Residuals move with their parameters into another layout."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tests.each import each
from tests.feedback.test_error_feedback import (
    NUMEL,
    SIZES,
    TRUE,
    WHOLE,
    end,
    equal,
    filled,
    layouts,
    residual,
    top,
)

from gaussiank.feedback import ErrorFeedback
from gaussiank.momentum import MomentumCorrection


@each("momentum", [None, MomentumCorrection(0.9)], ids=["plain", "momentum"])
@each(
    ("before", "after"),
    [
        (["abcd"], ["dcba"]),
        (["abcd"], ["ab", "cd"]),
        (["abcd"], ["d", "c", "b", "a"]),
        (["ab", "cd"], ["abcd"]),
        (["a", "b", "c", "d"], ["dbca"]),
        (["ab", "cd"], ["ac", "db"]),
        (["abc", "d"], ["dc", "ab"]),
    ],
    ids="+".join,
)
def test_residuals_move_with_their_parameters(
    rng: torch.Generator, before: list[str], after: list[str], momentum: MomentumCorrection | None
) -> None:
    feedback = ErrorFeedback(SIZES, momentum=momentum)

    def step(groups: list[str], grad: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        sent: dict[str, torch.Tensor] = {}
        for layout in layouts(*groups):
            dense = feedback.take(layout, torch.cat([grad[name] for name in layout.names]), top(3)).dense()
            sent |= {name: dense[place] for name, place in layout.slices()}
            feedback.record_finite(TRUE)
        assert end(feedback)
        return sent

    def some_grad() -> dict[str, torch.Tensor]:
        return {name: torch.randn(numel, generator=rng) for name, numel in SIZES.items()}

    for _ in range(3):
        step(before, some_grad())
    saved = feedback.state_dict()
    for groups in (after, before, after):  # there, back and there again
        for layout in layouts(*groups):  # a step that fails moves them, and changes nothing
            feedback.take(layout, torch.randn(layout.numel, generator=rng), top(3))
        assert not end(feedback)
        assert equal(feedback.state_dict(), saved)
        grad = some_grad()
        sent = step(groups, grad)
        now = feedback.state_dict()
        assert now["residual"].keys() == SIZES.keys()
        for name in SIZES:
            if momentum is None:
                assert torch.equal(now["residual"][name] + sent[name], saved["residual"][name] + grad[name])
            else:
                moved = saved["velocity"][name] * 0.9 + grad[name]
                total = now["residual"][name] + sent[name]
                assert torch.equal(total, saved["residual"][name] + moved)
                assert torch.equal(now["velocity"][name], torch.where(sent[name] != 0, 0, moved))
        saved = now


def test_parameters_left_behind_by_a_new_layout_keep_theirs(rng: torch.Generator) -> None:
    feedback = filled(rng)
    before = feedback.state_dict()["residual"]
    (only,) = layouts("ba")
    sent = feedback.take(only, torch.zeros(37), top(3)).dense()
    assert end(feedback, TRUE)
    assert torch.equal(feedback.residual("c"), before["c"])
    assert torch.equal(feedback.residual("d"), before["d"])
    assert torch.equal(feedback.residual("a") + sent[7:], before["a"])
    grad = torch.zeros(NUMEL)
    assert feedback.take_all(WHOLE, grad)  # and all of it comes together again
    assert end(feedback, TRUE)
    assert torch.equal(grad[30:37] + sent[:7], before["b"])
    assert torch.equal(grad[37:], torch.cat([before["c"], before["d"]]))


def test_dense_step_in_another_layout_flushes_too(rng: torch.Generator) -> None:
    feedback = filled(rng)
    came = feedback.state_dict()["residual"]
    (reversed_layout,) = layouts("dcba")
    grad = torch.zeros(NUMEL)
    assert feedback.take_all(reversed_layout, grad)
    assert end(feedback, TRUE)
    assert torch.equal(grad, torch.cat([came[name] for name in "dcba"]))
    assert not residual(feedback).any()
