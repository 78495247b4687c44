"""What the steps of one method measured: averaged over workers, reported, and summed up at its end."""

from __future__ import annotations

import statistics
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# measured on every worker at every step, and averaged over workers
COLUMNS = ("loss", "kept", "sent_bytes", "dense_bytes", "step_s", "compute_s", "select_s", "communicate_s")


class Measurements:
    """Collect a row for each step on every worker, and average the rows over workers a few at a time.

    Within a process group.
    """

    def __init__(self) -> None:
        self._local: list[list[float]] = []
        self._pending: list[dict[str, Any]] = []
        self._averaged: list[list[float]] = []  # k first, then COLUMNS

    def __len__(self) -> int:
        """Return the steps that are averaged."""
        return len(self._averaged)

    @property
    def waiting(self) -> int:
        """Steps that are not averaged yet."""
        return len(self._local)

    def add(self, record: dict[str, Any], row: list[float]) -> None:
        """Note a step: its record, and this worker's values of ``COLUMNS``, which the record lacks yet."""
        self._pending.append(record)
        self._local.append(row)

    def average(self) -> list[dict[str, Any]]:
        """Return the records since the last call, with their averages; every worker calls it."""
        if not self._local:
            return []
        table = torch.tensor(self._local, dtype=torch.float64)
        dist.all_reduce(table)
        records = self._pending
        for record, row in zip(records, (table / dist.get_world_size()).tolist(), strict=True):
            record.update(zip(COLUMNS, row, strict=True))
            self._averaged.append([record["k"], *row])
        self._local, self._pending = [], []
        return records

    def closing(self) -> dict[str, Any]:
        """Sum all steps up: mean traffic, and the median of each time."""
        columns = dict(zip(("k", *COLUMNS), zip(*self._averaged, strict=True), strict=True))
        sent, dense = statistics.fmean(columns["sent_bytes"]), statistics.fmean(columns["dense_bytes"])
        return {
            "kept_over_k": sum(columns["kept"]) / sum(columns["k"]),
            "sent_bytes": sent,
            "dense_bytes": dense,
            "compression": dense / sent if sent else 1.0,
            **{key: statistics.median(columns[key]) for key in COLUMNS[4:]},
        }

    def state(self) -> Tensor:
        """Return the averages, float64 ``[steps, 1 + columns]``, for a checkpoint."""
        return torch.tensor(self._averaged, dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        """Go on from saved averages."""
        self._averaged = state.tolist()
