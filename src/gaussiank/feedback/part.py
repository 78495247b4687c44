"""What lies in memory for the parameters of one flat vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.layout import Layout
from gaussiank.ops import RESIDUAL_DTYPES


@dataclass(eq=False)
class Part:
    """Residual and velocity of one layout, each with the buffer of the step that is under way.

    Args:
        layout: which parameters.
        residual: ``[numel]`` committed residual.
        velocity: ``[numel]`` committed velocity, or None without momentum correction.
        next_residual: ``[numel]`` what a step writes.
        next_velocity: ``[numel]`` likewise.
        clean: whether the residual is known to be all zeros.
    """

    layout: Layout
    residual: Tensor
    velocity: Tensor | None
    next_residual: Tensor
    next_velocity: Tensor | None
    clean: bool = True

    @classmethod
    def of_zeros(cls, layout: Layout, dtype: torch.dtype, device: torch.device, *, moving: bool) -> Part:
        """Make the part of a layout without any residual yet; ``moving``: with a velocity."""

        def zeros() -> Tensor:
            return ops.residual_buffer(layout.numel, dtype, device)

        return cls(layout, zeros(), zeros() if moving else None, zeros(), zeros() if moving else None)

    def fits(self, grad: Tensor) -> bool:
        """Tell whether the residual has the gradient's device and dtype; a loaded one need not."""
        return self.residual.device == grad.device and self.residual.dtype == RESIDUAL_DTYPES[grad.dtype]

    def swap(self) -> None:
        """Commit the step: what it wrote becomes the residual and the velocity."""
        self.residual, self.next_residual = self.next_residual, self.residual
        self.velocity, self.next_velocity = self.next_velocity, self.velocity
