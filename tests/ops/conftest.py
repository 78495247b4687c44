"""Every op on every backend of this machine, and vectors that are hard for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from tests.each import each, each_within

from gaussiank import ops

KERNELS = ops.backends().available[1:]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, one_thread: None) -> int:
    count: int = request.param
    torch.set_num_threads(count)
    return count


def _spread(numel: int, value: float, step: int) -> torch.Tensor:
    vector = torch.zeros(numel)
    vector[::step] = value
    return vector


LAWS: dict[str, Callable[[int, torch.Generator], torch.Tensor]] = {
    "normal": lambda n, rng: torch.randn(n, generator=rng),
    "heavy tail": lambda n, rng: torch.randn(n, generator=rng) / torch.rand(n, generator=rng).clamp(min=1e-4),
    "zeros": lambda n, rng: torch.zeros(n),
    "few non-zeros": lambda n, rng: torch.randn(n, generator=rng) * (torch.rand(n, generator=rng) < 2e-3),
    "signed zeros": lambda n, rng: torch.where(torch.rand(n, generator=rng) < 0.5, 0.0, -0.0),
    "one value": lambda n, rng: torch.full((n,), 0.25),
    "ties": lambda n, rng: torch.randint(-3, 4, (n,), generator=rng).float(),
    "denormals": lambda n, rng: torch.randn(n, generator=rng) * 1e-42,
    "huge": lambda n, rng: torch.randn(n, generator=rng).sign() * 3.4e38 * torch.rand(n, generator=rng),
    "one infinity": lambda n, rng: torch.randn(n, generator=rng).index_fill(0, torch.tensor([n // 2]), -math.inf),
    "infinities and NaN": lambda n, rng: (
        torch.randn(n, generator=rng) + _spread(n, math.inf, 7) + _spread(n, math.nan, 11)
    ),
    "all NaN": lambda n, rng: torch.full((n,), math.nan),
    "alternating": lambda n, rng: torch.arange(n).remainder(2).mul(2).sub(1).float() * torch.arange(1, n + 1),
    "ascending": lambda n, rng: torch.arange(n).float(),
    "descending": lambda n, rng: torch.arange(n, 0, -1).float(),
    "one block large": lambda n, rng: torch.randn(n, generator=rng).mul_(1 + 99 * (torch.arange(n) < 1 + n // 50)),
}


each_backend = each_within("backend", {name: partial(ops.use_backend, name) for name in ops.backends().available})
each_law = each("law", LAWS.values(), ids=LAWS)
