"""The operators that are timed, ours and peers, on every backend, and the vectors that they select from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from gaussiank import ops
from gaussiank.compressors import COMPRESSORS, Compressor, SelectContext, SIDCo
from gaussiank.ops import Taken


class Switch:
    """Lets the ops run on one backend after the other; leaving it puts back the one that ran before.

    Example:
        >>> with Switch() as switch:
        ...     switch.to("reference")
        ...     ops.backends().active
        'reference'
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def to(self, backend: str) -> None:
        """Use a backend of the ops from now on; for a library that is none (a peer's), the usual one."""
        self._stack.close()
        if backend in ops.backends().available:
            self._stack.enter_context(ops.use_backend(backend))


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


Choose = Callable[[Tensor, int, torch.Generator], Tensor]


class Peer(NamedTuple):
    """A published rule.

    Attributes:
        choose: residual, k and a generator to int64 indices.
        rule: what it does, in one line.
    """

    choose: Choose
    rule: str


def _topk(residual: Tensor, k: int, _random: torch.Generator) -> Tensor:
    return residual.abs().topk(k).indices


def _kthvalue(residual: Tensor, k: int, _random: torch.Generator) -> Tensor:
    magnitude = residual.abs()
    threshold = magnitude.kthvalue(magnitude.numel() - k + 1).values
    return (magnitude >= threshold).nonzero().squeeze(1)


def _argpartition(residual: Tensor, k: int, _random: torch.Generator) -> Tensor:
    magnitude = np.abs(residual.numpy())
    return torch.from_numpy(np.argpartition(magnitude, magnitude.size - k)[magnitude.size - k :])


def _published_gaussian(residual: Tensor, k: int, _random: torch.Generator) -> Tensor:
    std, mean = torch.std_mean(residual)
    threshold = float(mean) + float(std) * NormalDist().inv_cdf(1 - k / residual.numel() / 2)
    magnitude = residual.abs()
    indices = (magnitude > threshold).nonzero().squeeze(1)
    for _ in range(2):
        if indices.numel() < 2 * k / 3:
            threshold *= 0.5
        elif indices.numel() > 4 * k / 3:
            threshold *= 1.5
        else:
            break
        indices = (magnitude > threshold).nonzero().squeeze(1)
    return indices


def _dgc(residual: Tensor, k: int, random: torch.Generator) -> Tensor:
    magnitude = residual.abs()
    numel = magnitude.numel()
    sampled = magnitude[torch.randint(numel, (math.ceil(numel / 100),), generator=random)]
    threshold = sampled.topk(math.ceil(sampled.numel() * k / numel)).values.min()
    indices = (magnitude >= threshold).nonzero().squeeze(1)
    for _ in range(10):
        if indices.numel() > 1.3 * k:
            return indices[magnitude[indices].topk(k).indices]
        if indices.numel() >= 0.8 * k:
            break
        threshold = threshold * 0.8
        indices = (magnitude >= threshold).nonzero().squeeze(1)
    return indices[:k]


def _redsync(residual: Tensor, k: int, _random: torch.Generator) -> Tensor:
    magnitude = residual.abs()
    mean, largest = magnitude.mean(), magnitude.max()
    indices = torch.empty(0, dtype=torch.int64)
    ratio = 1.0
    while indices.numel() < k and ratio > 0:
        ratio -= 0.2
        indices = (magnitude > mean + ratio * (largest - mean)).nonzero().squeeze(1)
    largest_first: Tensor = magnitude[indices].topk(min(k, indices.numel())).indices
    return indices[largest_first]


def _sidco(residual: Tensor, k: int, _random: torch.Generator) -> Tensor:
    magnitude: Tensor = residual.abs() / residual.norm()
    ratio = k / magnitude.numel()
    tail: Tensor = magnitude.clone()
    share = max(ratio, 0.25)
    threshold: Tensor = -tail.mean() * math.log(share)
    rest = ratio / share
    while rest < 1:
        tail = tail[(tail > threshold).nonzero().squeeze(1)]
        if not tail.numel():
            break
        share = max(rest, 0.25)
        least = tail.min()
        threshold = least - (tail.mean() - least) * math.log(share)
        rest /= share
    return (magnitude > threshold).nonzero().squeeze(1)


def _mstopk(residual: Tensor, k: int, random: torch.Generator) -> Tensor:
    magnitude = residual.abs()
    mean, largest = magnitude.mean(), magnitude.max()
    low, high, below, above = 0.0, 1.0, magnitude.numel(), 0
    upper, lower = torch.tensor(math.inf), torch.tensor(0.0)
    for _ in range(30):
        ratio = (low + high) / 2
        threshold = mean + ratio * (largest - mean)
        count = int(torch.count_nonzero(magnitude >= threshold))
        if count <= k:
            high = ratio
            if count > above:
                above, upper = count, threshold
        else:
            low = ratio
            if count < below:
                below, lower = count, threshold
    sure = (magnitude >= upper).nonzero().squeeze(1)
    between = ((magnitude < upper) & (magnitude >= lower)).nonzero().squeeze(1)
    start = int(torch.randint(between.numel() - (k - sure.numel()) + 1, (1,), generator=random))
    return torch.cat([sure, between[start : start + k - sure.numel()]])


PEERS: dict[str, Peer] = {
    "torch.topk": Peer(_topk, "torch.topk of |u|"),
    "torch.kthvalue": Peer(_kthvalue, "torch.kthvalue of |u|, then all that reach it"),
    "numpy.argpartition": Peer(_argpartition, "numpy.argpartition of |u|"),
    "published Gaussian_k": Peer(_published_gaussian, "normal threshold, x 0.5 or x 1.5, at most 3 tests"),
    "published DGC": Peer(_dgc, "threshold from a random sample of 1 %, x 0.8 below 0.8 k, Top_k above 1.3 k"),
    "published RedSync": Peer(_redsync, "threshold from maximum down to mean in steps of 0.2, then Top_k"),
    "published SIDCo-E": Peer(_sidco, "exponential fit in stages of a quarter"),
    "published MSTopK": Peer(_mstopk, "30 counts by bisection, then a run from between"),
}
"""Name -> published rule; in the plain torch (or numpy) calls that its authors use."""


SETTLE_TURNS = 30  # after these SIDCo's controller has found its stages: it moves one every 5 turns
SETTLE_ENTRIES = 1_000_000


@dataclass(eq=False)
class Operator(ABC):
    """Add the gradient to the residual in place, choose, and remove what was chosen.

    Attributes:
        name: as the table of compressors, or the table of peers, has it.
        family: ``ours`` or ``peer``.
        backend: what the ops run on.
        state: ``steady`` with the hint of the last vector, ``cold`` without; ``stateless`` where there is none.
    """

    name: str
    family: str
    backend: str
    state: str

    @property
    def label(self) -> str:
        """Name and state, for people."""
        return f"{self.name} {self.state}" if self.state == "cold" else self.name

    def settle(self, accumulated: Tensor, density: float) -> None:
        """Bring the state to where it is in the middle of a training."""
        return

    @abstractmethod
    def take(self, grad: Tensor, residual: Tensor, k: int) -> Taken:
        """Do one step's work.

        Args:
            grad: float ``[numel]``. Not modified.
            residual: float32 ``[numel]``; becomes residual + grad without what was taken.
            k: entries asked for.
        """


@dataclass(eq=False)
class OurOperator(Operator):
    """One of the compressors."""

    compressor: Compressor
    hint: Tensor | None = None
    step: int = 0

    def settle(self, accumulated: Tensor, density: float) -> None:
        """Find a first hint on the first million entries; SIDCo's controller needs many turns to come to rest."""
        if self.state != "steady":
            return
        part = accumulated[:SETTLE_ENTRIES]
        k = max(1, round(density * part.numel()))
        for step in range(SETTLE_TURNS if isinstance(self.compressor, SIDCo) else 1):
            self.hint = self.compressor.select(part, k, SelectContext(step, hint=self.hint)).hint

    def take(self, grad: Tensor, residual: Tensor, k: int) -> Taken:
        """Add, choose with the compressor, remove: in one op where it has one, as training does."""
        context = SelectContext(self.step, hint=None if self.state == "cold" else self.hint)
        self.step += 1
        taken = self.compressor.take(grad, residual, residual, k, context)
        if taken is not None:
            self.hint = taken.hint
            return taken
        ops.accumulate(residual, grad, out=residual)
        indices, self.hint = self.compressor.select(residual, k, context)
        values = residual[indices]
        residual[indices] = 0
        return Taken(indices, values)


@dataclass(eq=False)
class Theirs(Operator):
    """One of the peers."""

    choose: Choose
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def take(self, grad: Tensor, residual: Tensor, k: int) -> Taken:
        """Add, choose by the published rule, remove."""
        residual.add_(grad)
        indices = self.choose(residual, k, self.random)
        values = residual[indices]
        residual[indices] = 0
        return Taken(indices, values)


def operator_names() -> tuple[str, ...]:
    """Return what can be asked for: compressors that choose, then peers."""
    return (*(name for name, kind in COMPRESSORS.items() if not kind.sends_all), *PEERS)


def operators(names: Sequence[str], backends: Sequence[str]) -> list[Operator]:
    """Make the named operators: ours once for each backend, and cold as well where the hint is a threshold."""
    made: list[Operator] = []
    for name in names:
        if name in PEERS:
            library = "numpy" if name.startswith("numpy") else "torch"
            made.append(Theirs(name, "peer", library, "stateless", PEERS[name].choose))
            continue
        for backend in backends:
            compressor = COMPRESSORS[name]()
            made += [OurOperator(name, "ours", backend, state, compressor) for state in _states(compressor)]
    return made


def _states(compressor: Compressor) -> tuple[str, ...]:
    hint = compressor.select(torch.linspace(-1, 1, 1000), 100).hint
    if hint is None:
        return ("stateless",)
    return ("steady", "cold") if hint.dim() == 0 else ("steady",)  # a threshold is a guess; other state is no guess
