"""DGC's momentum correction and local clipping: settings, and what they do to a gradient before it is accumulated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaussiank.layout import Layout
from gaussiank.ops import RESIDUAL_DTYPES


@dataclass(frozen=True)
class MomentumCorrection:
    """Accumulate velocity instead of gradient before the selection, so that delayed entries carry their momentum.

    ``velocity = momentum velocity + grad``; ``accumulated = residual + velocity`` (Nesterov:
    ``residual + grad + momentum velocity``). Use it with an optimizer whose own momentum is 0: another is
    refused at its first step.

    Args:
        momentum: in [0, 1); a larger one remembers longer.
        nesterov: look one step ahead.
        masking: forget the velocity of an entry when it is sent (factor masking), against stale momentum. A dense step
            masks nothing: it is ordinary momentum SGD.
        clip_norm: largest norm of a parameter's local gradient, before it is divided by the square root of the number
            of workers; None clips nothing. What is clipped is not kept.

    Raises:
        ValueError: ``momentum`` or ``clip_norm`` out of range.

    Source: Lin et al. 2018, "Deep Gradient Compression", sections 3.1 to 3.3.
    Differs: clips parameter by parameter, as its authors' code does, because a bucket leaves before the norm of the
    whole gradient is known.

    Example:
        >>> MomentumCorrection(0.9, clip_norm=1.0).masking
        True
    """

    momentum: float = 0.9
    nesterov: bool = False
    masking: bool = True
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}. 0.9 is usual.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, got {self.clip_norm}. Leave it out to clip nothing.")

    def advance(self, velocity: Tensor, grad: Tensor, out: Tensor, layout: Layout, world_size: int) -> Tensor:
        """Write the next velocity to ``out`` and return what the residual grows by.

        Args:
            velocity: float ``[numel]`` of the last step. Not modified.
            grad: ``[numel]`` local gradient. Not modified.
            out: ``[numel]`` in the velocity's dtype, apart from it.
            layout: parameters in ``grad``.
            world_size: number of workers; scales the clipping norm.

        Returns:
            ``out`` itself, or ``grad + momentum out`` for Nesterov's.

        Example:
            >>> layout, velocity, grad = Layout(("w",), (1,)), torch.tensor([2.0]), torch.tensor([1.0])
            >>> MomentumCorrection(0.5).advance(velocity, grad, torch.empty(1), layout, world_size=4)
            tensor([2.])
        """
        if self.clip_norm is not None:
            grad = self.clip(grad, layout, world_size)
        torch.mul(velocity, self.momentum, out=out)
        out.add_(grad)
        return torch.add(grad.to(out.dtype), out, alpha=self.momentum) if self.nesterov else out

    def clip(self, grad: Tensor, layout: Layout, world_size: int) -> Tensor:
        """Return a copy of ``grad`` in which no parameter's norm is above ``clip_norm / sqrt(world_size)``.

        Args:
            grad: ``[numel]`` local gradient. Not modified.
            layout: parameters in ``grad``.
            world_size: number of workers.
        """
        out = grad.to(RESIDUAL_DTYPES[grad.dtype], copy=True)
        if self.clip_norm is None:
            return out
        limit = self.clip_norm / world_size**0.5
        for _, place in layout.slices():
            part = out[place]
            if not part.numel():
                continue
            peak = torch.linalg.vector_norm(part, torch.inf).clamp_min(torch.finfo(out.dtype).tiny)
            norm_over_peak = torch.linalg.vector_norm(part / peak)  # squares of float32 overflow from 2e19 on
            part *= (limit / peak / norm_over_peak).clamp_max(1.0)
        return out
