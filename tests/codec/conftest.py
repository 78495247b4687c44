"""Run the codec with its C code and with its reference alone; both must do the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import pytest
import torch
from tests.each import each_within

from gaussiank.codec import SharedDraw
from gaussiank.ops import use_backend
from gaussiank.ops.dispatch import kernels
from gaussiank.sparse import SparseGradient


@pytest.fixture
def reference_only() -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which no C code runs."""

    return lambda: use_backend("reference")


@contextmanager
def native_code() -> Iterator[None]:
    if kernels() is None:
        pytest.skip("the package was installed without its C code")
    yield


each_backend = each_within("backend", {"reference": partial(use_backend, "reference"), "native": native_code})


@pytest.fixture
def choose(rng: torch.Generator) -> Callable[[int, int], torch.Tensor]:
    """Return ``choose(numel, count)``: ascending int32 indices at random, the first and the last one among them."""

    def choose(numel: int, count: int) -> torch.Tensor:
        if count == 0:
            return torch.empty(0, dtype=torch.int32)
        if 4 * count > numel:
            return torch.randperm(numel, generator=rng)[:count].sort().values.int()
        chosen = torch.tensor([0, numel - 1][:count])
        while len(chosen) < count:
            more = torch.randint(numel, (count - len(chosen),), generator=rng)
            chosen = torch.cat([chosen, more]).unique()
        return chosen.int()

    return choose


@pytest.fixture
def make(choose: Callable[[int, int], torch.Tensor], rng: torch.Generator) -> Callable[..., SparseGradient]:
    """Return ``make(numel, count, dtype)``: a sparse gradient whose magnitudes differ by factors."""

    def make(numel: int, count: int, dtype: torch.dtype = torch.float32) -> SparseGradient:
        indices = choose(numel, count)
        values = torch.randn(len(indices), generator=rng, dtype=dtype)
        return SparseGradient(
            indices, values * (2.0 * torch.randn(len(indices), generator=rng, dtype=dtype)).exp(), numel
        )

    return make


@pytest.fixture
def drawn() -> Callable[[SparseGradient], SharedDraw]:
    """Return ``drawn(sparse)``: a draw that gives the indices of that gradient."""
    return lambda sparse: SharedDraw(seed=5, step=6, part=7, draw=lambda numel, count: sparse.indices.clone())
