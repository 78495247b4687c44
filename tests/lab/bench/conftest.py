"""One small run of the operator benchmark, shared by what reads its rows."""

from __future__ import annotations

import pytest

from gaussiank import ops
from gaussiank_lab.bench.ops import OpsBench, OpsConfig
from gaussiank_lab.bench.rows import Row


@pytest.fixture(scope="session")
def fast_config() -> OpsConfig:
    return OpsConfig(
        sizes=(2000, 20_000),
        densities=(0.01, 0.1),
        laws=("normal", "uniform"),
        names=("topk", "gaussiank", "torch.topk", "published Gaussian_k"),
        repeats=2,
    )


@pytest.fixture(scope="session")
def settings_of_rows(fast_config: OpsConfig) -> list[list[Row]]:
    return list(OpsBench(fast_config).run())


@pytest.fixture(scope="session")
def rows(settings_of_rows: list[list[Row]]) -> list[Row]:
    return [row for setting in settings_of_rows for row in setting]


@pytest.fixture(scope="session")
def backends() -> tuple[str, ...]:
    return ops.backends().available
