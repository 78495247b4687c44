"""What the operators select from: named laws, and a real vector out of a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np
import torch
from torch import Generator, Tensor

from gaussiank import ops

_DRIFT = 1.03  # magnitudes of the second vector over those of the first: a hint from one is a little off for the other

Law = Callable[[int, Generator], Tensor]


def _laplace(numel: int, random: Generator) -> Tensor:
    sign = torch.rand(numel, generator=random).sub_(0.5).sign_()
    return torch.empty(numel).exponential_(generator=random).mul_(sign)


def _student_t3(numel: int, random: Generator) -> Tensor:
    squares = torch.zeros(numel)
    for _ in range(3):
        squares.add_(torch.randn(numel, generator=random).square_())
    return torch.randn(numel, generator=random).div_(squares.div_(3).sqrt_())


def _triangular(numel: int, random: Generator) -> Tensor:
    return torch.rand(numel, generator=random).sub_(torch.rand(numel, generator=random))


def _residual(numel: int, random: Generator) -> Tensor:
    """Tile the stored vector: each tile in a fresh order, and scaled by a fresh factor from 1/2 to 2."""
    sample = stored_residual()
    out = torch.empty(numel)
    for tile in out.split(sample.numel()):
        order = torch.randperm(sample.numel(), generator=random)[: tile.numel()]
        torch.mul(sample[order], 4.0 ** (torch.rand(1, generator=random) - 0.5), out=tile)
    return out


LAWS: dict[str, Law] = {
    "normal": lambda numel, random: torch.randn(numel, generator=random),
    "laplace": _laplace,
    "student-t3": _student_t3,
    "uniform": lambda numel, random: torch.rand(numel, generator=random).mul_(2).sub_(1),
    "triangular": _triangular,
    "residual": _residual,
}
"""Name -> draw of a float32 ``[numel]`` vector; ``residual`` has a real vector's magnitudes, not its neighbourhoods."""


def stored_residual() -> Tensor:
    """Return the stored real vector: float32 ``[199210]``, in parameter order.

    It is what Top_k saw (residual plus gradient) at step 400 of training FNN-3 at density 0.001 with error feedback;
    ``scripts/make_residual_sample.py`` made it.
    """
    with files(__package__).joinpath("residual.npz").open("rb") as file, np.load(file) as arrays:
        return torch.from_numpy(arrays["accumulated"])


@dataclass(eq=False)
class Vectors:
    """Two residuals with their gradients, and the buffer that operators work in.

    Operators change the residual, so each run starts from a fresh copy; two vectors take turns, so that no hint comes
    from the very vector it is used on.

    Attributes:
        law: name of the law that ``residual + grad`` follows.
        before: two residuals, float32 ``[numel]``. The second is 3 % larger than the law.
        grads: their gradients: a quarter of the sum each.
        residual: where an operator adds, selects and removes; a buffer as training has it.
    """

    law: str
    before: tuple[Tensor, Tensor]
    grads: tuple[Tensor, Tensor]
    residual: Tensor = field(repr=False)

    @classmethod
    def draw(cls, law: str, numel: int, seed: int) -> Vectors:
        """Draw both from the law."""
        random = Generator().manual_seed(seed)
        sums = [LAWS[law](numel, random), LAWS[law](numel, random).mul_(_DRIFT)]
        grads = [vector / 4 for vector in sums]
        before = [vector.sub_(grad) for vector, grad in zip(sums, grads, strict=True)]
        return cls(law, (before[0], before[1]), (grads[0], grads[1]), ops.residual_buffer(numel))

    @property
    def numel(self) -> int:
        """Length of each vector."""
        return self.residual.numel()

    def reset(self, side: int) -> None:
        """Put residual 0 or 1 into the working buffer."""
        self.residual.copy_(self.before[side])

    def accumulated(self, side: int) -> Tensor:
        """Return residual + gradient as a new vector."""
        return self.before[side] + self.grads[side]
