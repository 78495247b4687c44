from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.each import each

from gaussiank.layout import Layout
from gaussiank.sparse import SparseGradient
from gaussiank_lab.study import sampling as module
from gaussiank_lab.study.sampling import Ages, Sent

NUMELS = {"a": 40, "b": 0, "c": 160}
LAYOUTS = (Layout(("a", "b", "c"), (40, 0, 160)), Layout(("c", "a"), (160, 40)))


@each("batch", [1, 3, 20])
def test_ages_are_those_of_a_plain_loop(batch: int) -> None:
    random = np.random.default_rng(0)
    ages = Ages(NUMELS)
    log: list[Sent] = []
    last = {name: np.full(numel, -1) for name, numel in NUMELS.items()}
    for step in range(20):
        layout = LAYOUTS[step // 7 % 2]  # buckets are rebuilt now and then
        if step == 11:
            log.append((step, 200, layout, None))
            for name in layout.names:
                last[name][:] = step
            continue
        chosen = np.sort(random.choice(200, 20 if step % 5 else 0, replace=False))
        sparse = SparseGradient(torch.from_numpy(chosen).int(), torch.ones(chosen.size), 200)
        log.append((step, 20, layout, sparse))
        for name, place in layout.slices():
            inside = chosen[(chosen >= place.start) & (chosen < place.stop)] - place.start
            last[name][inside] = step
        if len(log) < batch:
            continue
        ages.sent(log)
        log = []
        age = np.sort(step - np.concatenate(list(last.values())))
        assert ages.summary(step) == {
            "tracked": 200,
            "mean": age.mean(),
            "median": age[100],
            "p90": age[180],
            "never_sent": (age > step).mean(),
        }


def test_large_models_are_sampled() -> None:
    numel = 100_000
    ages = Ages({"w": numel})
    half = torch.arange(0, numel, 2, dtype=torch.int32)
    ages.sent([(5, numel // 2, Layout(("w",), (numel,)), SparseGradient(half, torch.ones(numel // 2), numel))])
    summary = ages.summary(9)
    assert summary["tracked"] == module.TRACKED
    assert summary["never_sent"] == pytest.approx(0.5, abs=0.03)
