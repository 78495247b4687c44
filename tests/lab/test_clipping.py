from __future__ import annotations

import torch
from torch import nn

from gaussiank_lab.train.step import GradientCarrier, clip_local


def test_carrier_brings_back_the_very_gradients() -> None:
    model = nn.Linear(3, 2)
    grads = [torch.randn(2, 3), torch.tensor([float("inf"), -0.0])]
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad.clone()
    carried = GradientCarrier(model)()
    assert all(parameter.grad is None for parameter in model.parameters())
    carried.backward()
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad.view(torch.int32), grad.view(torch.int32))


def test_carrier_leaves_frozen_parameters_out() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    model.weight.grad = torch.ones(2, 3)
    GradientCarrier(model)().backward()
    assert model.bias.grad is None
    assert torch.equal(model.weight.grad, torch.ones(2, 3))


def test_clipping_scales_all_gradients_alike() -> None:
    model = nn.Linear(2, 1)
    model.weight.grad = torch.tensor([[3.0, 0.0]])
    model.bias.grad = torch.tensor([4.0])
    clip_local(model, 10.0)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[3.0, 0.0]]))
    clip_local(model, 1.0)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.0]]))
    torch.testing.assert_close(model.bias.grad, torch.tensor([0.8]))
