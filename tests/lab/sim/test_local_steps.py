from __future__ import annotations

import pytest
from tests.each import each

from gaussiank_lab.sim import Bucket, Cluster, Device, Link, Method, Scenario, Spread, Tier, Workload, local_steps

FAR = Cluster("c", (Tier("region", Link("far", 1e8, latency_s=0.05)),), ("ring",))
SCENARIO = Scenario(Workload("m", (Bucket(10**6, 0.2),), 0.1), Device("d"), FAR)
DENSE = Method("dense", "dense")


@each("every", [1, 10, 500])
def test_exchange_is_shared_out_over_the_round(every: int) -> None:
    exchange_s = 2 * 3 * (0.05 + 1e6 * 8e-8)
    cost = local_steps(SCENARIO, DENSE, 4, every)
    assert cost.exchange_s == pytest.approx(exchange_s)
    assert cost.step_s == pytest.approx(0.3 + exchange_s / every)
    assert cost.efficiency == pytest.approx(0.3 / cost.step_s)


def test_jitter_averages_out_and_stragglers_do_not() -> None:
    jitter = Scenario(SCENARIO.workload, SCENARIO.device, FAR, spread=Spread(compute_cv=0.2))
    often, rarely = (local_steps(jitter, DENSE, 256, every).compute_s for every in (1, 500))
    assert 0.3 < rarely < 0.3 * 1.05 < often
    slow = Spread(compute_cv=0.2, straggler_share=1, straggler_factor=2)
    straggling = Scenario(SCENARIO.workload, SCENARIO.device, FAR, spread=slow)
    assert local_steps(straggling, DENSE, 256, 500).compute_s == pytest.approx(0.6, rel=0.05)


def test_rounds_have_steps() -> None:
    with pytest.raises(ValueError, match=r"^every must be at least 1, got 0\."):
        local_steps(SCENARIO, DENSE, 4, 0)
