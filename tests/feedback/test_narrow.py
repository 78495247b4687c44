"""Residuals of 16 bits: the transaction is the same, and nothing is lost on average."""

from __future__ import annotations

import math

import pytest
import torch
from tests.each import each
from torch import Tensor

from gaussiank import ops
from gaussiank.feedback import ErrorFeedback
from gaussiank.layout import Layout
from gaussiank.momentum import MomentumCorrection
from gaussiank.sparse import SparseGradient

NUMEL = 70_001  # more than a piece
LAYOUT = Layout(("w", "b"), (70_000, 1))
SIZES = dict(zip(LAYOUT.names, LAYOUT.numels, strict=True))
BF16 = torch.bfloat16


def largest(vector: Tensor) -> SparseGradient:
    return SparseGradient.pick(vector, ops.select_topk(vector, 100))


def narrow(momentum: MomentumCorrection | None = None) -> ErrorFeedback:
    return ErrorFeedback(SIZES, dtype=BF16, momentum=momentum)


def take(feedback: ErrorFeedback, grad: Tensor, *, finite: bool = True, turn: int = 0) -> SparseGradient:
    feedback.turn = turn
    sent = feedback.take(LAYOUT, grad.clone(), largest)
    feedback.record_finite(torch.tensor(finite))
    feedback.seal()
    assert feedback.settle() == finite
    return sent


def test_rounding_goes_to_a_neighbour_and_keeps_the_expectation(rng: torch.Generator) -> None:
    vector = torch.randn(NUMEL, generator=rng) * 10.0 ** torch.randint(-30, 30, (NUMEL,), generator=rng)
    out, total = torch.empty(NUMEL, dtype=BF16), torch.zeros(NUMEL, dtype=torch.float64)
    step = torch.finfo(BF16).eps * vector.abs()
    for turn in range(64):
        ops.round_randomly(vector, out, turn)
        assert ((out.float() - vector).abs() < step).all()
        total += out.double()
    errors = (total / 64 - vector) / step  # of each, at most half a step of spread in one draw
    assert float(errors.abs().max()) < 6 * 0.5 / 8
    assert abs(float(errors.mean())) < 6 * 0.5 / math.sqrt(64 * NUMEL)
    again = torch.empty_like(out)
    assert torch.equal(ops.round_randomly(vector, again, 63), out)
    assert not torch.equal(ops.round_randomly(vector, again, 64), out)
    exact = vector.to(BF16)
    assert torch.equal(ops.round_randomly(exact.float(), again, 7), exact)  # what fits stays as it is
    for odd in (math.inf, -math.inf, math.nan):
        held = ops.round_randomly(torch.tensor([odd]), torch.empty(1, dtype=BF16), 3)
        torch.testing.assert_close(held.float(), torch.tensor([odd]), equal_nan=True)


def test_small_gradients_grow_in_a_large_residual(rng: torch.Generator) -> None:
    """Rounded to the nearest, 1 + 0.001 is 1 for ever."""
    feedback = narrow()
    grad = torch.full((NUMEL,), 1.0)
    for turn in range(201):
        sent = feedback.take(LAYOUT, grad, lambda u: SparseGradient.pick(u, torch.zeros(1, dtype=torch.int32)))
        assert sent.values.dtype == torch.float32
        feedback.record_finite(torch.tensor(True))
        feedback.seal()
        assert feedback.settle()
        feedback.turn, grad = turn, torch.full((NUMEL,), 0.001)
    held = feedback.residuals(LAYOUT)
    assert held.dtype == BF16
    assert abs(float(held[1:].float().mean()) - 1.2) < 2e-3


@each("momentum", [None, MomentumCorrection(0.5)])
def test_nothing_is_lost_on_average_and_what_is_forgotten_leaves_no_trace(
    rng: torch.Generator, momentum: MomentumCorrection | None
) -> None:
    feedback, exact = narrow(momentum), ErrorFeedback(SIZES, momentum=momentum)
    for turn in range(20):
        grad = torch.randn(NUMEL, generator=rng)
        before = feedback.state_dict()
        take(feedback, grad * 1e6, finite=False, turn=turn)
        after = feedback.state_dict()
        assert all(torch.equal(one, after["residual"][name]) for name, one in before["residual"].items() if turn)
        # the same entries from both: what is kept differs by rounding alone
        sent = take(feedback, grad, turn=turn)
        exact.take(LAYOUT, grad, lambda u, sent=sent: SparseGradient.pick(u, sent.indices))
        exact.record_finite(torch.tensor(True))
        exact.seal()
        exact.settle()
    error = feedback.residuals(LAYOUT).double() - exact.residuals(LAYOUT).double()
    spread = float(exact.residuals(LAYOUT).double().std())
    assert 0 < float(error.std()) < 0.02 * spread
    assert abs(float(error.mean())) < 6 * float(error.std()) / math.sqrt(NUMEL)


def test_what_comes_back_is_kept_and_states_go_on(rng: torch.Generator) -> None:
    feedback = narrow()
    feedback.take(LAYOUT, grad := torch.randn(NUMEL, generator=rng), largest)
    assert not torch.equal(grad, torch.zeros(NUMEL))  # used for the sum; the mean is written over it
    rest = torch.full((NUMEL,), 0.25)
    before = feedback._parts[LAYOUT].next_residual.float()
    feedback.put_back(LAYOUT, rest)
    some = SparseGradient(torch.tensor([3, 69_999], dtype=torch.int32), torch.tensor([8.0, -8.0]), NUMEL)
    feedback.put_back(LAYOUT, some)
    feedback.record_finite(torch.tensor(True))
    feedback.seal()
    assert feedback.settle()
    after = feedback.residuals(LAYOUT).float()
    torch.testing.assert_close(after[4:69_999], before[4:69_999] + 0.25, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(
        after[[3, 69_999]], before[[3, 69_999]] + torch.tensor([8.25, -7.75]), rtol=2**-6, atol=0
    )
    state = feedback.state_dict()
    other, wide = narrow(), ErrorFeedback(SIZES)
    for loaded in (other, wide):
        loaded.load_state_dict(state)
        assert torch.equal(loaded.residuals(LAYOUT).float(), after)  # and a run of 32 bits takes it
    grad = torch.randn(NUMEL, generator=rng)
    assert torch.equal(take(other, grad, turn=5).values, take(feedback, grad, turn=5).values)
    assert torch.equal(other.residuals(LAYOUT), feedback.residuals(LAYOUT))
    assert wide.residuals(LAYOUT).dtype == torch.float32
    drawn = other.take_more(LAYOUT, torch.tensor([1, 2], dtype=torch.int32))
    assert drawn.dtype == torch.float32


@each("dtype", [torch.float32, BF16, torch.float64])
def test_a_dense_step_sends_all_of_it(rng: torch.Generator, dtype: torch.dtype) -> None:
    feedback = narrow()
    take(feedback, torch.randn(NUMEL, generator=rng).to(dtype))
    held = feedback.residuals(LAYOUT).double()
    grad = torch.randn(NUMEL, generator=rng).to(dtype)
    sent = grad.clone()
    assert feedback.take_all(LAYOUT, sent, held=[slice(NUMEL - 1, NUMEL)])
    feedback.record_finite(torch.tensor(True))
    feedback.seal()
    assert feedback.settle()
    left = feedback.residuals(LAYOUT).double()
    torch.testing.assert_close((sent.double() + left)[:-1], (grad.double() + held)[:-1], rtol=1e-4, atol=1e-4)
    assert sent[-1] == grad[-1]
    assert left[-1] == held[-1]  # of a parameter without gradient
    assert bool(left[:-1].any()) == (dtype is BF16)


def test_it_is_refused_where_it_means_nothing() -> None:
    from gaussiank.compressors import RandomK, TopK
    from gaussiank.reducer import Settings
    from gaussiank.schedule import Constant

    with pytest.raises(
        ValueError, match=r"^residual_dtype must be torch.float32 or torch.bfloat16, got torch.float16\."
    ):
        Settings(Constant(0.1), TopK(), residual_dtype=torch.float16)
    with pytest.raises(ValueError, match=r"^residual_dtype must be None for a compressor without feedback, got bfloat"):
        Settings(Constant(0.1), RandomK(feedback=False), residual_dtype=BF16)
    assert (
        Settings(Constant(0.1), TopK(), residual_dtype=torch.float32).agreed()
        == Settings(Constant(0.1), TopK()).agreed()
    )
