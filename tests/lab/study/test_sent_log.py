"""What steps sent, counted when a sample is written."""

from __future__ import annotations

import torch

from gaussiank.layout import Layout
from gaussiank.sparse import SparseGradient
from gaussiank_lab.study.sampling import SentLog

WHOLE = Layout(("w",), (40_000,))


def test_counts_of_every_step_since_the_last_record() -> None:
    log = SentLog({"w": 40_000})
    for step in range(6):
        sent = None if step == 3 else SparseGradient(torch.arange(3000 + step).int(), torch.ones(3000 + step), 40_000)
        log.note(step, 3000, WHOLE, sent)  # more than 10,000 entries are counted before the sample is written
        log.note(step, 7, WHOLE, SparseGradient(torch.tensor([39_999]).int(), torch.ones(1), 40_000))
    record = log.record(step=5)
    kept = [3001, 3002, 3003, 40_001, 3005, 3006]
    assert record["since"] == {"step": list(range(6)), "k": [3007] * 6, "kept": kept}
    assert record["age"]["never_sent"] == 0
    assert record["age"]["median"] == 2
    assert log.record(step=6)["since"] == {"step": [], "k": [], "kept": []}


def test_without_residuals_there_are_no_ages() -> None:
    log = SentLog({})
    log.note(0, 5, WHOLE, None)
    assert log.record(step=0) == {"since": {"step": [0], "k": [5], "kept": [40_000]}}
