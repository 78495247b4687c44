"""Clip the gradient of one worker as a whole, before anything of it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _HandOver(torch.autograd.Function):
    """A scalar whose gradient for each parameter is a tensor that is known already."""

    @staticmethod
    def forward(ctx: Any, grads: Sequence[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.grads = grads
        return parameters[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return (None, *ctx.grads)


class GradientCarrier(nn.Module):
    """Stand between a model and DDP, so that DDP exchanges gradients made before.

    DDP sends a bucket as soon as it is full, long before the norm of the whole gradient is known. So the model's own
    backward runs outside DDP; its gradient is clipped; then DDP's backward carries it, bit for bit, through the hook.
    This costs the overlap of sending with backward.

    Args:
        model: whose parameters are exchanged; it keeps its buffers in step too.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        """Take every parameter's gradient away, and return a scalar whose backward brings it back."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        grads = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        carried: Tensor = _HandOver.apply(grads, *parameters)  # type: ignore[no-untyped-call]  # torch gives apply no types
        return carried


def clip_local(model: nn.Module, max_norm: float) -> None:
    """Scale a model's gradients down until their joint norm is ``max_norm`` at most; a smaller one stays as it is.

    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1.
    """
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
