"""Velocities beside residuals: what momentum correction makes of both."""

from __future__ import annotations

import math

import numpy as np
import torch
from tests.each import each
from tests.feedback.test_error_feedback import NUMEL, SIZES, TRUE, WHOLE, end, grads, residual, top, velocity

from gaussiank.feedback import ErrorFeedback
from gaussiank.momentum import MomentumCorrection
from gaussiank.sparse import SparseGradient


class Reference:
    """DGC's rules, entry by entry, in double precision."""

    def __init__(self, settings: MomentumCorrection, world_size: int) -> None:
        self.settings, self.world_size = settings, world_size
        self.velocity, self.residual = [0.0] * NUMEL, [0.0] * NUMEL

    def clip(self, grad: list[float]) -> list[float]:
        if self.settings.clip_norm is None:
            return grad
        clipped: list[float] = []
        for numel in WHOLE.numels:
            part = grad[len(clipped) : len(clipped) + numel]
            norm = math.sqrt(sum(g * g for g in part))
            limit = self.settings.clip_norm / math.sqrt(self.world_size)
            clipped += [g * limit / norm for g in part] if norm > limit else part
        return clipped

    def step(self, grad: list[float], k: int) -> dict[int, float]:
        m = self.settings.momentum
        for i, g in enumerate(self.clip(grad)):
            self.velocity[i] = m * self.velocity[i] + g
            self.residual[i] += g + m * self.velocity[i] if self.settings.nesterov else self.velocity[i]
        order = sorted(range(NUMEL), key=lambda i: -abs(self.residual[i]))
        sent = {i: self.residual[i] for i in sorted(order[:k])}
        for i in sent:
            self.residual[i] = 0.0
            if self.settings.masking:
                self.velocity[i] = 0.0
        return sent


@each("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@each("clip_norm", [None, 4.0])
@each("masking", [True, False], ids=["masking", "no masking"])
@each("nesterov", [True, False], ids=["nesterov", "plain"])
def test_momentum_correction_is_that_of_its_paper(
    rng: torch.Generator, nesterov: bool, masking: bool, clip_norm: float | None, dtype: torch.dtype
) -> None:
    settings = MomentumCorrection(0.9, nesterov=nesterov, masking=masking, clip_norm=clip_norm)
    feedback = ErrorFeedback(SIZES, momentum=settings, world_size=4)
    reference = Reference(settings, world_size=4)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype != torch.float64 else {"rtol": 1e-12, "atol": 1e-12}
    for raw in grads(rng, 10):
        grad = raw.to(dtype)
        own = grad.clone()
        sent = feedback.take(WHOLE, grad, top(8))
        assert end(feedback, TRUE)
        expected = reference.step(grad.double().tolist(), 8)
        assert sent.indices.tolist() == list(expected)
        np.testing.assert_allclose(sent.values.double().numpy(), list(expected.values()), **close)
        np.testing.assert_allclose(residual(feedback).double().numpy(), reference.residual, **close)
        np.testing.assert_allclose(velocity(feedback).double().numpy(), reference.velocity, **close)
        assert torch.equal(grad, own)


def test_masking_forgets_the_velocity_of_what_comes_back_too(rng: torch.Generator) -> None:
    feedback = ErrorFeedback(SIZES, momentum=MomentumCorrection(0.5))
    (grad,) = grads(rng, 1)
    sent = feedback.take(WHOLE, grad, top(4))
    back = SparseGradient(sent.indices[1:], sent.values[1:], NUMEL)
    feedback.put_back(WHOLE, back)
    assert end(feedback, TRUE)
    rest = grad.clone()
    rest[sent.indices] = 0
    assert torch.equal(velocity(feedback), rest)
    assert torch.equal(residual(feedback), rest + back.dense())


def test_plain_momentum_keeps_velocity_and_residual_to_the_bit(rng: torch.Generator) -> None:
    feedback = ErrorFeedback(SIZES, momentum=MomentumCorrection(0.5, masking=False))
    moved, before = torch.zeros(NUMEL), torch.zeros(NUMEL)
    for grad in grads(rng, 10):
        moved = moved * 0.5 + grad
        sent = feedback.take(WHOLE, grad, top(4))
        assert end(feedback, TRUE)
        assert torch.equal(velocity(feedback), moved)
        assert torch.equal(residual(feedback) + sent.dense(), before + moved)
        before = residual(feedback)


@each("nesterov", [True, False])
def test_dense_steps_with_momentum_are_momentum_sgd(rng: torch.Generator, nesterov: bool) -> None:
    feedback = ErrorFeedback(SIZES, momentum=MomentumCorrection(0.9, nesterov=nesterov))
    parameter = torch.nn.Parameter(torch.zeros(NUMEL))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.9, nesterov=nesterov)
    moved = torch.zeros(NUMEL)
    for grad in grads(rng, 8):
        parameter.grad = grad.clone()
        optimizer.step()
        assert feedback.take_all(WHOLE, grad)
        assert end(feedback, TRUE)
        moved -= grad
        torch.testing.assert_close(moved, parameter.data)
        assert not residual(feedback).any()
