"""A small synthetic run with values that a test can compute again."""

from __future__ import annotations

import math
import multiprocessing.forkserver
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gaussiank_lab.report.records import RecordWriter

NUMEL = 61706
K = 62
DENSE_BYTES = 370236.0
METHODS = ("dense", "topk", "gaussiank", "randomk")
ACCURACY = {"dense": 0.870, "topk": 0.841, "gaussiank": 0.836, "randomk": 0.75}
SENT = {"dense": DENSE_BYTES, "gaussiank": 1600.0}
SELECT_S = {"dense": 0.0, "topk": 0.0003, "gaussiank": 0.0004}


def run_record(methods: Iterable[str] = METHODS, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "run",
        "format": 1,
        "started": "2026-07-26T20:10:11+00:00",
        "gaussiank": "0.1.0",
        "torch": "2.13.0",
        "machine": {"cpu": "a processor", "cores": 2, "python": "3.11.7"},
        "config": {
            "model": "lenet5",
            "dataset": "fashion-mnist",
            "methods": list(methods),
            "density": 0.001,
            "workers": 4,
            "lr": 0.05,
            "seed": 0,
        },
        "model": {"name": "lenet5", "numel": NUMEL},
        "command": "gaussiank train --model lenet5",
    } | changes


def step_record(method: str, step: int, **changes: Any) -> dict[str, Any]:
    base = method.partition(":")[0]
    k = NUMEL if base == "dense" else K
    select_s = SELECT_S.get(base, 0.0002)
    return {
        "kind": "step",
        "method": method,
        "step": step,
        "loss": 0.4 + 2 * math.exp(-step / 10) + 0.01 * (step % 3),
        "density": 0.001,
        "k": k,
        "kept": k + (step % 5) * 10.0 if base == "gaussiank" else float(k),
        "numel": NUMEL,
        "sent_bytes": SENT.get(base, 1536.0),
        "dense_bytes": DENSE_BYTES,
        "step_s": 0.0180 + select_s,
        "compute_s": 0.0140,
        "select_s": select_s,
        "communicate_s": 0.0030,
    } | changes


def eval_record(method: str, step: int, steps: int, **changes: Any) -> dict[str, Any]:
    accuracy = ACCURACY.get(method.partition(":")[0], 0.8) - 0.5 * (1 - step / steps)
    return {
        "kind": "eval",
        "method": method,
        "step": step,
        "epoch": step / 20,
        "loss": 0.5,
        "accuracy": accuracy,
    } | changes


def method_record(method: str, steps: int, **changes: Any) -> dict[str, Any]:
    last = step_record(method, steps)
    return {
        "kind": "method",
        "method": method,
        "steps": steps,
        "seconds": 1.5,
        "accuracy": ACCURACY.get(method.partition(":")[0], 0.8),
        "loss": 0.5,
        "kept_over_k": 1.0,
        "compression": DENSE_BYTES / last["sent_bytes"],
        "digest": "9f2ce7ab",
    } | {key: last[key] for key in last if key.endswith(("_s", "_bytes"))} | changes  # fmt: skip


@pytest.fixture
def fork_server() -> Iterator[None]:
    """Let this test have a fork server of its own: workers write where it did when it began, as capfd must see."""
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]  # it is there for tests
    yield
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]  # as above


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run and returns its directory."""

    def write(
        methods: Iterable[str] = METHODS,
        *,
        steps: int = 40,
        diverged: str | None = None,
        unfinished: str | None = None,
        name: str = "run",
        run: dict[str, Any] | None = None,
    ) -> Path:
        run_dir = tmp_path / name
        with RecordWriter(run_dir) as writer:
            writer.write(run_record(methods, **(run or {})))
            for method in methods:
                lost: dict[str, Any] = {"loss": math.nan} if method == diverged else {}
                for step in range(1, steps + 1):
                    writer.write(step_record(method, step, **(lost if step > steps // 2 else {})))
                    if step % 10 == 0:
                        writer.write(eval_record(method, step, steps, **(lost if step > steps // 2 else {})))
                if method != unfinished:
                    writer.write(method_record(method, steps, **lost))
        return run_dir

    return write
