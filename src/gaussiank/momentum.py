"""DGC's momentum correction and local clipping: settings, and what they do to a gradient before it is accumulated."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        masking: forget the velocity of an entry when it is selected (factor masking), against stale momentum; also of
            one that the collective sends back, as ``leader``, ``tree`` and ``split`` do, which trains better than to
            keep it. A dense step masks nothing: it is ordinary momentum SGD.
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


@dataclass(frozen=True)
class LocalClip:
    """Clip this worker's own gradient before anything of it is selected; what is clipped is not kept.

    Clipping the mean, after the exchange, throws away what residuals have given to it. The norm of the whole gradient
    is known only at the end of backward. So a vector that leaves earlier, a bucket or a parameter, gets its share of
    ``norm ** 2``, by its number of parameters: then the whole gradient's norm is ``norm`` at most as well.

    Args:
        norm: largest norm of the whole local gradient, above 0; a smaller one clips more.
        parameters: how many parameters the whole gradient has.
        per_layer: each parameter is a vector by itself.

    Raises:
        ValueError: ``norm`` is not above 0.

    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1; locally, before
    the exchange: Lin et al. 2018, "Deep Gradient Compression", section 3.2. Differs: one norm for all parameters of a
    vector, not divided by the square root of the number of workers.

    Example:
        >>> grad = torch.tensor([3.0, 4.0, 0.5])
        >>> LocalClip(1.0, parameters=2).apply(Layout(("w",), (2,)), [grad[:2]])
        >>> grad * 2**0.5
        tensor([0.6000, 0.8000, 0.7071])
    """

    norm: float
    parameters: int
    per_layer: bool = False

    def __post_init__(self) -> None:
        if not (self.norm > 0 and math.isfinite(self.norm)):
            raise ValueError(f"clip_norm must be above 0 and finite, got {self.norm}. Leave it out to clip nothing.")

    def apply(self, layout: Layout, grads: Sequence[Tensor], scale: float = 1.0) -> None:
        """Scale a vector down to its share of the norm, in place.

        Args:
            layout: parameters in ``grads``, end to end.
            grads: flat local gradients.
            scale: what a ``GradScaler`` has multiplied them by.
        """
        limit = self.norm * scale / self.parameters**0.5
        if self.per_layer:
            for _, place in layout.slices():
                limit_norm([grads[0][place]], limit)
        else:
            limit_norm(grads, limit * len(layout.names) ** 0.5)


def limit_norm(parts: Sequence[Tensor], limit: float) -> None:
    """Scale some vectors down together, in place, to a joint norm of ``limit``; leave a smaller one, infinity and NaN.

    Args:
        parts: float ``[numel]`` each.
        limit: above 0.

    Example:
        >>> parts = torch.tensor([3e30]), torch.tensor([4e30])
        >>> limit_norm(parts, 10.0)
        >>> [part.item() for part in parts]
        [6.0, 8.0]
    """
    # in float64: squares of float32 overflow from 2e19 on
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
    factor = limit / torch.linalg.vector_norm(torch.stack(norms))
    if factor.is_cpu and not 0 < float(factor) < 1:  # elsewhere nobody waits for the device to know
        return
    factor = torch.where((factor > 0) & (factor < 1), factor, 1.0)
    for part in parts:
        part.mul_(factor)
