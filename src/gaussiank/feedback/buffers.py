"""The memory of one layout: what is committed, and beside it what an uncommitted step writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.layout import Layout
from gaussiank.sparse import SparseGradient


@dataclass(eq=False)
class ResidualBuffers:
    """Residual and velocity of one layout, each with the buffer that an uncommitted step writes.

    A step reads ``residual`` and writes ``next_residual``, in one pass over memory. ``commit`` swaps the two and copies
    nothing; ``forget`` swaps nothing, and the next step writes over what was written. A backward that goes on from an
    open step reads ``next_residual`` and writes a third buffer, made when it is first needed.

    Args:
        layout: which parameters.
        residual: ``[numel]`` committed residual.
        velocity: ``[numel]`` committed velocity, or None without momentum correction.
        next_residual: ``[numel]`` what a step writes.
        next_velocity: ``[numel]`` likewise.
        clean: whether the residual is known to be all zeros.
        open: whether ``next_residual`` holds a step that is neither committed nor forgotten.
        turn: what the next rounding to 16 bits draws by.
    """

    layout: Layout
    residual: Tensor
    velocity: Tensor | None
    next_residual: Tensor
    next_velocity: Tensor | None
    clean: bool = True
    open: bool = False
    turn: int = 0
    _spare: tuple[Tensor, Tensor | None] | None = None

    @classmethod
    def of_zeros(
        cls, layout: Layout, dtype: torch.dtype, device: torch.device, *, velocity: torch.dtype | None
    ) -> ResidualBuffers:
        """Make the part of a layout without any residual yet; with a velocity of another dtype if one is given."""

        def zeros(dtype: torch.dtype) -> Tensor:
            return ops.residual_buffer(layout.numel, dtype, device)

        moving = None if velocity is None else (zeros(velocity), zeros(velocity))
        return cls(layout, zeros(dtype), moving and moving[0], zeros(dtype), moving and moving[1])

    @property
    def narrow(self) -> bool:
        """Whether the residual has 16 bits."""
        return self.residual.dtype is torch.bfloat16

    def keep(self, accumulated: Tensor) -> None:
        """Write what is left of an accumulated vector to ``next_residual``, in 16 bits."""
        ops.round_randomly(accumulated, self.next_residual, self._turned())

    def add(self, rest: SparseGradient | Tensor) -> None:
        """Add to ``next_residual``."""
        if isinstance(rest, Tensor):
            ops.add_randomly(self.next_residual, rest, self._turned()) if self.narrow else self.next_residual.add_(rest)
        elif self.narrow:
            held = self.next_residual[rest.indices]
            ops.add_randomly(held, rest.values, self._turned())
            self.next_residual[rest.indices] = held
        else:
            self.next_residual.index_add_(0, rest.indices, rest.values)

    def _turned(self) -> int:
        self.turn += 1
        return self.turn

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
