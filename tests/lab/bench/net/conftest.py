"""One small run of the network benchmark on loopback, shared by what reads its rows."""

from __future__ import annotations

import pytest

from gaussiank_lab.bench.net.run import NetBench, NetConfig
from gaussiank_lab.bench.rows import Row

METHODS = (
    *("ddp", "ddp-fp16", "ddp-powersgd", "paper-topk", "paper-dgc", "topk", "topk/auto", "gaussiank/split"),
    *("adamrows:density=0.01", "local:sync_every=2:density=0.01"),
)


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    config = NetConfig(("lenet5",), ("loopback",), METHODS, (2,), density=0.01, batch_size=2, rounds=2, steps=2, warm=3)
    (setting,) = NetBench(config).run()
    return setting
