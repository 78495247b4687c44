"""The same records for TensorBoard, which is an optional dependency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gaussiank_lab.study.sketch import Sketch

_HISTOGRAM_BITS = 1


class Board(Protocol):
    """The part of torch's ``SummaryWriter`` that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Add a point to a curve."""
        ...

    @property
    def add_histogram_raw(self) -> Callable[..., None]:
        """What adds a histogram of which only the buckets are known; torch names its arguments after built-ins."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def open_board(folder: Path) -> Board:
    """Open TensorBoard's writer.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard must be installed for tensorboard=True, got an environment without it. "
            "Run: pip install gaussiank-lab[tensorboard]"
        ) from None
    board: Board = SummaryWriter(str(folder))
    return board


def show(board: Board, record: Mapping[str, Any]) -> None:
    """Add a sample: its histograms, and what can be told in one number."""
    step = record["step"]
    for name, fields in record["vectors"].items():
        sketch = Sketch.from_record(fields)
        board.add_scalar(f"norm/{name}", sketch.square_sum**0.5, step)
        board.add_scalar(f"kurtosis/{name}", sketch.kurtosis, step)
        board.add_scalar(f"zeros/{name}", sketch.zeros / max(1, sketch.numel), step)
        _show_histogram(board, f"distribution/{name}", sketch.fold(_HISTOGRAM_BITS), step)
    if record.get("k"):
        board.add_scalar("kept over k", record["kept"] / record["k"], step)
        board.add_scalar("contraction/live", record["contraction"], step)
    for name, tried in record.get("operators", {}).items():
        board.add_scalar(f"contraction/{name}", tried["contraction"], step)
    if "cosine" in record:
        board.add_scalar("cosine with the dense mean", record["cosine"], step)
    if "age" in record:
        board.add_scalar("age of the residual", record["age"]["mean"], step)


def _show_histogram(board: Board, tag: str, sketch: Sketch, step: int) -> None:
    counts, edges = sketch.counts, sketch.edges
    filled = np.flatnonzero(counts[:, : -(1 << sketch.bits)].sum(axis=0))
    if not filled.size:
        return
    first, last = max(int(filled[0]), 1 << sketch.bits), int(filled[-1]) + 1
    minus = counts[1, first:last][::-1]
    plus = counts[0, first:last]
    limits = [*(-edges[first:last][::-1]), edges[first], *edges[first + 1 : last + 1]]
    board.add_histogram_raw(
        tag,
        min=float(-edges[last]),
        max=float(edges[last]),
        num=sketch.numel,
        sum=sketch.mean * sketch.numel,
        sum_squares=sketch.square_sum,
        bucket_limits=[float(limit) for limit in limits],
        bucket_counts=[*minus.tolist(), sketch.numel - int(minus.sum() + plus.sum()), *plus.tolist()],
        global_step=step,
    )
