"""SIDCo: a threshold from a sparsity-inducing law, fitted to the tail again and again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from gaussiank import ops

from .compressor import Compressor, SelectContext, Selection

Mode = Literal["exponential", "gammapareto", "pareto"]

_FIRST_SHARE = 0.25  # what the first stage lets through
_TURNS = 5  # selections between two looks of the controller
_TOLERANCE = 0.2  # the controller is content with a mean count within k (1 -+ tolerance)
_LOG_FLOOR = 2.0**-52  # added before the logarithm of the gamma fit, so that zeros have one


@dataclass(frozen=True)
class SIDCo(Compressor):
    """Choose the entries above the magnitude that a fitted law would exceed k times.

    The first stage fits the law to all magnitudes and lets a quarter through; each later stage fits it to the excess of
    what is left and lets the same share through, so that all stages together leave ``k / numel``. A controller counts
    over 5 selections: more than 1.2 k on average, one stage fewer; less than 0.8 k, one more; from 1 to
    ``ceil(log2(numel / k))`` stages. The mode names the law of each stage:

    - ``exponential`` (SIDCo-E): exponential in every stage. Mean and logarithm only.
    - ``gammapareto`` (SIDCo-GP): gamma in the first stage, generalised Pareto in the later ones.
    - ``pareto`` (SIDCo-P): generalised Pareto in every stage, by its first two moments.

    The count has no bound: it follows the data, and on a small model it was 2.5 k on average and 17 k in a step
    before the controller had settled (LeNet-5, density 0.001, 200 steps). The controller only ever answers a
    surplus with fewer stages, so where one stage sends too much (a tail heavier than the law's) it stays there. A
    vector whose magnitudes are all equal lies below every fitted threshold, and nothing of it is sent.

    Args:
        mode: one of the three above.
        stages: number of stages; more fit further out in the tail, each on fewer entries. 0 lets the controller choose.

    Raises:
        ValueError: an unknown mode, or a negative number of stages.

    Source: Abdelmoniem et al. 2021, "An Efficient Statistical-based Gradient Compression Technique for Distributed
    Training Systems", section 2 and algorithm 1, and its authors' code.
    Differs: each vector has a controller of its own, in its hint; the authors' code has one for all. The first stage of
    ``gammapareto`` inverts the gamma law by bisection, as their code does, where the paper approximates. A stage that
    leaves fewer than two entries is the last. Shares of the later stages are equal, as in their code.

    Example:
        >>> import torch
        >>> u = torch.empty(100_000).exponential_(generator=torch.Generator().manual_seed(0))
        >>> 900 <= len(SIDCo().select(u, k=1000).indices) <= 1100
        True
    """

    mode: Mode = "exponential"
    stages: int = 0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}. Choose one of them.")
        if self.stages < 0:
            raise ValueError(f"stages must be at least 0, got {self.stages}. With 0 the controller chooses.")

    def capacity(self, k: int, numel: int) -> int | None:
        """Return None: only the data limits the count."""
        return None

    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        """Choose the entries above the fitted threshold."""
        ops.require_vector(accumulated, "accumulated")
        numel = accumulated.numel()
        ops.require_k(k, numel)
        state = _State.read(turn.hint if turn else None)
        magnitude = accumulated.abs()
        largest = magnitude.max()
        if float(largest) > 0:
            magnitude /= largest  # no square of a magnitude overflows, and none is lost to underflow
        stages = self.stages or min(state.stages, _most_stages(k / numel))
        threshold = _threshold(self.mode, magnitude, k / numel, stages)
        indices = (magnitude > threshold).nonzero().squeeze(1).int()
        return Selection(indices, None if self.stages else state.after(indices.numel() / k, k / numel).write())


class _State(NamedTuple):
    """What the controller remembers of one vector between turns."""

    stages: int = 1
    turns: int = 0
    kept_over_k: float = 0.0  # summed over the turns since the last change

    @classmethod
    def read(cls, hint: Tensor | None) -> _State:
        if hint is None or hint.shape != (3,):  # none yet, or another compressor's
            return cls()
        stages, turns, kept_over_k = hint.tolist()
        return cls(int(stages), int(turns), kept_over_k)

    def write(self) -> Tensor:
        return torch.tensor(self, dtype=torch.float64, device="cpu")

    def after(self, kept_over_k: float, density: float) -> _State:
        """Return the state after one more selection."""
        turns, total = self.turns + 1, self.kept_over_k + kept_over_k
        if turns < _TURNS:
            return _State(self.stages, turns, total)
        mean = total / turns
        step = -1 if mean > 1 + _TOLERANCE else 1 if mean < 1 - _TOLERANCE else 0
        return _State(min(max(self.stages + step, 1), _most_stages(density)))


def _most_stages(density: float) -> int:
    return max(1, math.ceil(-math.log2(density)))


def _threshold(mode: Mode, magnitude: Tensor, density: float, stages: int) -> float:
    """Fit the law stage by stage to ``magnitude``, whose largest entry is 1, and return the last threshold."""
    if stages == 1 or density >= _FIRST_SHARE:
        return _first(mode, magnitude, density)
    share = (density / _FIRST_SHARE) ** (1 / (stages - 1))
    threshold, tail = _first(mode, magnitude, _FIRST_SHARE), magnitude
    fit = _exponential if mode == "exponential" else _pareto
    for _ in range(stages - 1):
        tail = tail[tail > threshold]
        if tail.numel() < 2:
            break
        least = tail.min()
        threshold = float(least) + fit(tail - least, share)
    return threshold


def _first(mode: Mode, magnitude: Tensor, share: float) -> float:
    return {"exponential": _exponential, "gammapareto": _gamma, "pareto": _pareto}[mode](magnitude, share)


def _exponential(excess: Tensor, share: float) -> float:
    """Return the value that an exponential law with the mean of ``excess`` exceeds with probability ``share``."""
    return -float(excess.mean()) * math.log(share)


def _pareto(excess: Tensor, share: float) -> float:
    """Return the same of a generalised Pareto law, ``1 - F(x) = (1 - shape x / scale)^(1 / shape)``, by two moments."""
    variance, mean = (float(moment) for moment in torch.var_mean(excess)) if excess.numel() > 1 else (0.0, 1.0)
    squared = mean**2 / variance if variance > 0 else math.inf
    if squared == math.inf:  # no spread: nothing is above
        return mean
    shape, scale = (squared - 1) / 2, mean * (squared + 1) / 2
    if abs(shape * math.log(share)) < 1e-9:
        return -scale * math.log(share)
    return -scale * math.expm1(shape * math.log(share)) / shape


def _gamma(magnitude: Tensor, share: float) -> float:
    """Return the same of a gamma law, fitted by Minka's closed form to the mean and the mean logarithm."""
    mean = float(magnitude.mean())
    spread = math.log(mean + _LOG_FLOOR) - float((magnitude + _LOG_FLOOR).log_().mean())
    if spread <= 1e-6:  # all magnitudes equal: nothing is above
        return 1.0
    shape = (3 - spread + math.sqrt((spread - 3) ** 2 + 24 * spread)) / (12 * spread)
    return mean / shape * _gamma_quantile(shape, share)


def _gamma_quantile(shape: float, share: float) -> float:
    """Invert ``1 - F(x) = share`` of a gamma law of scale 1: 4 rounds that each narrow the interval 64-fold."""
    low, high = 0.0, 2 * shape - 4 * math.log(share)  # Chernoff's bound puts less than share beyond it
    for _ in range(4):
        points = torch.linspace(low, high, 65, dtype=torch.float64, device="cpu")
        above = torch.special.gammaincc(torch.full_like(points, shape), points) > share
        at = min(max(int(above.sum()), 1), 64)
        low, high = float(points[at - 1]), float(points[at])
    return (low + high) / 2
