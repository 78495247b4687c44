"""Fixed seeds, the vectors of the paper, and the laws that accumulated gradients are drawn from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

SEED = 19110877
FIXTURES = Path(__file__).parent / "fixtures"

settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


def pytest_report_collectionfinish(items: list[pytest.Item]) -> str:
    """Count what ``each`` loops over inside a case, too."""
    subcases = sum(getattr(getattr(item, "obj", None), "subcases", 1) for item in items)
    return f"{len(items)} cases of {subcases} sub-cases"


@pytest.fixture
def rng() -> Any:
    """Return a torch generator that starts from the same state in every test."""
    import torch

    return torch.Generator().manual_seed(SEED)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def paper_vectors() -> dict[str, Any]:
    vectors: dict[str, Any] = json.loads((FIXTURES / "paper_vectors.json").read_text(encoding="utf-8"))
    return vectors


@pytest.fixture(scope="session")
def draw() -> Callable[..., Any]:
    """Return ``draw(law, numel, seed)``: a float32 vector of independent draws from a named law."""
    import numpy as np
    import torch

    def draw(law: str, numel: int, seed: int = SEED) -> torch.Tensor:
        random = np.random.default_rng(seed)
        values = {
            "normal": lambda: random.standard_normal(numel),
            "laplace": lambda: random.laplace(size=numel),
            "logistic": lambda: random.logistic(size=numel),
            "t3": lambda: random.standard_t(3, numel),
            "uniform": lambda: random.uniform(-1, 1, numel),
            "triangular": lambda: random.triangular(-1, 0, 1, numel),
            "cauchy": lambda: random.standard_cauchy(numel),
            "lognormal": lambda: random.lognormal(size=numel),
            "shifted": lambda: random.standard_normal(numel) + 3,
            "sparse": lambda: random.standard_normal(numel) * (random.random(numel) < 0.1),
            "integers": lambda: random.integers(-3, 4, numel),
            "constant": lambda: np.full(numel, 0.25),
        }[law]()
        return torch.from_numpy(np.asarray(values, dtype=np.float32))

    return draw


@pytest.fixture(scope="session")
def grid() -> Callable[[str, int], Any]:
    """Return ``grid(law, numel)``: the float64 array ``F^-1((i - 0.5) / numel)`` of a law of unit variance."""
    import math
    from statistics import NormalDist

    import torch

    quantiles = {
        "normal": NormalDist().inv_cdf,
        "laplace": lambda p: math.copysign(math.log(1 - 2 * abs(p - 0.5)) / math.sqrt(2), p - 0.5),
        "uniform": lambda p: math.sqrt(3) * (2 * p - 1),
    }

    def grid(law: str, numel: int) -> torch.Tensor:
        points = [quantiles[law]((i - 0.5) / numel) for i in range(1, numel + 1)]
        return torch.tensor(points, dtype=torch.float64)

    return grid
