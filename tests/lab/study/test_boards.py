"""What TensorBoard is told, by a stand-in for its writer; and by itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from gaussiank_lab.study.recorder import Recorder, open_board, show
from gaussiank_lab.study.study import read_study


class Board:
    def __init__(self) -> None:
        self.scalars: dict[str, dict[int, float]] = {}
        self.histograms: list[dict[str, Any]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.setdefault(tag, {})[global_step] = scalar_value

    def add_histogram_raw(self, tag: str, **fields: Any) -> None:
        self.histograms.append({"tag": tag, **fields})

    def close(self) -> None:
        pass


def test_samples_are_shown(study_dir: Path) -> None:
    board = Board()
    study = read_study(study_dir)
    for sample in study.samples:
        show(board, sample.record)
    last = study.samples[-1]
    u = last.vectors["accumulated"]
    assert board.scalars["norm/accumulated"][last.step] == pytest.approx(u.square_sum**0.5)
    assert board.scalars["kept over k"][last.step] == last.value("kept") / last.value("k")
    assert board.scalars["contraction/topk"][last.step] == last.record["operators"]["topk"]["contraction"]
    assert board.scalars["age of the residual"][last.step] == last.record["age"]["mean"]
    assert set(board.scalars["cosine with the dense mean"]) == {0, 3, 6, 9, 12}
    histogram = board.histograms[-1]
    assert histogram["tag"] == "distribution/accumulated"
    assert sum(histogram["bucket_counts"]) == histogram["num"] == u.numel
    assert len(histogram["bucket_limits"]) == len(histogram["bucket_counts"])
    assert histogram["bucket_limits"] == sorted(histogram["bucket_limits"])


def test_a_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install gaussiank-lab\[tensorboard\]"):
        open_board(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is an extra")
def test_the_real_one(tmp_path: Path, train: Any) -> None:
    train(Recorder(tmp_path, every=2, tensorboard=True), steps=3)
    assert any(path.stat().st_size > 500 for path in (tmp_path / "tensorboard").iterdir())
