from __future__ import annotations

import numpy as np
import pytest
from tests.each import each

from gaussiank_lab.sim import COLLECTIVES, RAW, Cluster, Curve, Link, Load, Overlap, Tier


@each("common", [0.0, 0.3, 1.0])
def test_union_is_that_of_drawn_selections(common: float) -> None:
    rng = np.random.default_rng(0)
    numel, k, workers = 20_000, 400, 12
    core = int(common * k)
    unions = []
    for _ in range(20):
        rest = [core + rng.choice(numel - core, k - core, replace=False) for _ in range(workers)]
        unions.append(len(set(np.concatenate([np.arange(core), *rest]).tolist())))
    assert Overlap(common).union(k, numel, workers) == pytest.approx(np.mean(unions), rel=0.01)


def test_union_is_never_more_than_there_is() -> None:
    assert Overlap().union(1000, 1000, 50) == 1000
    assert Overlap().union(900, 1000, 50) == pytest.approx(1000)
    assert Overlap(1.0).union(10, 1000, 50) == 10
    assert Overlap().union(0, 1000, 50) == 0


def test_measured_growth_replaces_the_formula() -> None:
    growth = Overlap(measured=Curve.of([(1, 1.0), (16, 4.0)]))
    assert growth.union(100, 10**6, 16) == pytest.approx(400)
    assert growth.union(100, 10**6, 4) == pytest.approx(200)
    assert growth.union(100, 150, 16) == 150


def test_common_must_be_a_share() -> None:
    with pytest.raises(ValueError, match=r"^common must be in \[0, 1\], got 1\.5\."):
        Overlap(1.5)


def test_exact_collectives_send_the_union_and_trimmed_ones_do_not() -> None:
    cluster = Cluster("c", (Tier("node", Link("l", 1e10), 8), Tier("rack", Link("l", 1e9))))
    for name in ("split", "hierarchical"):
        apart, alike = (Load(10**6, 1000, RAW, Overlap(common)) for common in (0.0, 0.9))
        exact = COLLECTIVES[f"{name}:trim=false"]
        assert exact(cluster, 64, apart).sent_bytes > 2 * exact(cluster, 64, alike).sent_bytes
        assert COLLECTIVES[name](cluster, 64, apart) == COLLECTIVES[name](cluster, 64, alike)
