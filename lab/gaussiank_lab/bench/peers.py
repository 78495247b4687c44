"""Other people's operators, written anew from their published rules, to measure ours against.

Each takes a residual to which the gradient has been added, and k, and returns the indices it would send. These are
references for comparison: slow where the rule is slow, wrong where the rule is wrong. None is used in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

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
