"""What becomes of a mean that came back: it is copied into the gradients, and refused where it must be finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gaussiank.layout import Layout


def write_back(mean: Tensor, grads: Sequence[Tensor], finite: Tensor) -> Tensor:
    """Copy the mean into the gradients, unless it is the one gradient itself; leave in ``mean`` what was rounded off.

    Args:
        mean: float ``[numel]``; becomes the rounding error.
        grads: flat gradients, end to end as long as ``mean``; overwritten.
        finite: 0-d bool tensor, whether the mean is.

    Returns:
        ``finite``, and whether no narrower dtype overflowed.

    Example:
        >>> mean, grad = torch.tensor([1.0, 1.001]), torch.zeros(2, dtype=torch.bfloat16)
        >>> write_back(mean, [grad], torch.tensor(True)), grad.tolist(), mean.tolist()[0]
        (tensor(True), [1.0, 1.0], 0.0)
    """
    if len(grads) == 1 and grads[0].data_ptr() == mean.data_ptr():
        return finite
    start = 0
    for grad in grads:
        part = mean[start : start + grad.numel()]
        grad.copy_(part)
        part.sub_(grad)
        start += grad.numel()
    return finite & torch.isfinite(mean).all()


def require_finite(finite: Tensor, layout: Layout, grads: Sequence[Tensor], step: int) -> None:
    """Raise when a mean is not finite; names the first parameter that is not.

    Args:
        finite: 0-d bool tensor, whether the mean is.
        layout: parameters in ``grads``, end to end.
        grads: the mean.
        step: number of the step.

    Raises:
        RuntimeError: infinity or NaN came from some worker.
    """
    if bool(finite):
        return
    mean = torch.cat(list(grads))
    for name, place in layout.slices():
        if not bool(torch.isfinite(mean[place]).all()):
            raise RuntimeError(
                f"gradient of {name} must be finite, got infinity or NaN on some worker in step {step}. No residual "
                "was changed; lower the learning rate, or let a GradScaler skip such steps with "
                "on_nonfinite='propagate'."
            )
