"""Rand_k: k entries at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaussiank import ops

from .compressor import Compressor, SelectContext, Selection

_DENSE_DRAW = 8  # above numel / 8 a whole permutation is cheaper than redrawing repeats


@dataclass(frozen=True)
class RandomK(Compressor):
    """Choose k entries uniformly at random, without repeats.

    In expectation ``||u - Rand_k(u)||^2 = (1 - k/d) ||u||^2``. The draw depends on ``seed``, step, part and (unless
    ``shared``) rank alone, by a generator of its own: torch's global generator is neither read nor set, and a resumed
    run repeats its draws.

    Args:
        shared: every worker draws the same indices, so that ``allgather`` and ``leader`` send values alone.
        feedback: keep what was not chosen in the residual. The baseline of the paper's published code has no
            feedback and throws it away: ``RandomK(feedback=False)``.
        seed: number that the draws start from.

    Source: Stich et al. 2018, "Sparsified SGD with Memory", definition 2.1.

    Example:
        >>> import torch
        >>> RandomK(shared=True).select(torch.ones(100), k=3).indices.shape
        torch.Size([3])
    """

    shared: bool = False
    feedback: bool = True
    seed: int = 0

    @property
    def keeps_rest(self) -> bool:
        """Whether ``feedback`` is on."""
        return self.feedback

    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        """Choose k at random."""
        ops.require_vector(accumulated, "accumulated")
        ops.require_k(k, accumulated.numel())
        return Selection(self._drawn(accumulated.numel(), k, turn or SelectContext(), accumulated.device))

    @property
    def draws_alike(self) -> bool:
        """Whether ``shared`` is on."""
        return self.shared

    def drawn(self, numel: int, k: int, turn: SelectContext, device: torch.device) -> Tensor:
        """Draw as ``select`` does."""
        return self._drawn(numel, k, turn, device) if self.shared else super().drawn(numel, k, turn, device)

    def _drawn(self, numel: int, k: int, context: SelectContext, device: torch.device) -> Tensor:
        generator = torch.Generator()  # the CPU's: those of two GPU models differ, and shared indices are not sent
        generator.manual_seed(_mix(self.seed, context.step, context.part, 0 if self.shared else context.rank + 1))
        drawn = _draw(numel, k, generator).int()
        return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)


def _mix(*numbers: int) -> int:
    """Mix numbers into one 63-bit seed, so that neighbouring steps and ranks get unrelated streams (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 1


def _draw(numel: int, k: int, generator: torch.Generator) -> Tensor:
    """Draw k of numel without repeats, ascending; work grows with k, not with numel, when k is small."""
    if k * _DENSE_DRAW >= numel:
        return torch.randperm(numel, generator=generator, device="cpu")[:k].sort().values
    drawn = torch.empty(0, dtype=torch.int64, device="cpu")
    while drawn.numel() < k:
        more = torch.randint(numel, (k + k // 4 + 8,), generator=generator, device="cpu")
        drawn = torch.unique(torch.cat([drawn, more]))  # sorted
    surplus = torch.randperm(drawn.numel(), generator=generator, device="cpu")[:k]
    return drawn[surplus.sort().values]
