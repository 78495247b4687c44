"""What lies in memory for the parameters of one flat vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.layout import Layout
from gaussiank.ops import RESIDUAL_DTYPES


@dataclass(eq=False)
class ResidualBuffers:
    """Residual and velocity of one layout, each with the buffer that an uncommitted step writes.

    Args:
        layout: which parameters.
        residual: ``[numel]`` committed residual.
        velocity: ``[numel]`` committed velocity, or None without momentum correction.
        next_residual: ``[numel]`` what a step writes.
        next_velocity: ``[numel]`` likewise.
        clean: whether the residual is known to be all zeros.
        open: whether ``next_residual`` holds a step that is neither committed nor forgotten.
    """

    layout: Layout
    residual: Tensor
    velocity: Tensor | None
    next_residual: Tensor
    next_velocity: Tensor | None
    clean: bool = True
    open: bool = False
    _spare: tuple[Tensor, Tensor | None] | None = None

    @classmethod
    def of_zeros(cls, layout: Layout, dtype: torch.dtype, device: torch.device, *, moving: bool) -> ResidualBuffers:
        """Make the part of a layout without any residual yet; ``moving``: with a velocity."""

        def zeros() -> Tensor:
            return ops.residual_buffer(layout.numel, dtype, device)

        return cls(layout, zeros(), zeros() if moving else None, zeros(), zeros() if moving else None)

    def fits(self, grad: Tensor) -> bool:
        """Return whether the residual has the gradient's device and dtype; a loaded one need not."""
        return self.residual.device == grad.device and self.residual.dtype == RESIDUAL_DTYPES[grad.dtype]

    def begin(self) -> tuple[Tensor, Tensor | None]:
        """Open a step; returns the residual and velocity that it starts from: an open step's, or the committed ones."""
        if not self.open:
            self.open = True
            if self.next_residual.numel() != self.residual.numel():  # after a rest
                self.next_residual = _like(self.residual)
                self.next_velocity = None if self.velocity is None else _like(self.velocity)
            return self.residual, self.velocity
        before = self.next_residual, self.next_velocity
        if self._spare is None:
            self._spare = _like(before[0]), None if before[1] is None else _like(before[1])
        (self.next_residual, self.next_velocity), self._spare = self._spare, before
        return before

    def commit(self) -> None:
        """End the open step: what it wrote becomes the residual and the velocity."""
        self.residual, self.next_residual = self.next_residual, self.residual
        self.velocity, self.next_velocity = self.next_velocity, self.velocity
        self.open = False

    def rest(self, dtype: torch.dtype | None, device: torch.device | None) -> None:
        """Hold nothing but residual and velocity until the next step, in another dtype or elsewhere if one is given."""
        if self.open:
            return
        self.residual = self.residual.to(device or self.residual.device, dtype or self.residual.dtype)
        self.next_residual = self.residual.new_empty(0)
        self.next_velocity = None if self.velocity is None else self.velocity.new_empty(0)
        self._spare = None

    def forget(self) -> None:
        """End the open step: residual and velocity stay as they were before it."""
        self.open = self.clean = False


def _like(vector: Tensor) -> Tensor:
    return ops.residual_buffer(vector.numel(), vector.dtype, vector.device)
