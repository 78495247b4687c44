from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.each import each

from gaussiank_lab.study.vectors import Snapshot, StoredPiece, VectorStore, snapshots, thin


def snapshot(step: int, values: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Snapshot:
    piece = StoredPiece(("a", "b"), (2, len(values) - 2), np.array(values, np.float32), (0.5,), 0.01, 1, 1, 0.25)
    return Snapshot(step, 0, 1, (piece,))


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, limit=3, max_bytes=1000)
    assert store.wants_next()
    store.save(snapshot(7))
    (read,) = snapshots(tmp_path)
    assert (read.step, read.rank, read.stride) == (7, 0, 1)
    (piece,), (written,) = read.pieces, snapshot(7).pieces
    assert piece.accumulated.tolist() == [1, 2, 3]
    for field in ("names", "numels", "hints", "density", "k", "kept", "contraction"):
        assert getattr(piece, field) == getattr(written, field)
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == ["step-00000007.npz"]


@each("limit", [1, 2, 3, 5])
def test_a_bounded_number_is_spread_over_the_run(tmp_path: Path, limit: int) -> None:
    store = VectorStore(tmp_path, limit, max_bytes=1000)
    for step in range(40):
        if store.wants_next():
            store.save(snapshot(step))
        assert len(list((tmp_path / "vectors").iterdir())) <= limit
    steps = [read.step for read in snapshots(tmp_path)]
    assert steps[0] == 0
    assert len(set(np.diff(steps))) <= 1
    assert limit == 1 or (len(steps) > limit / 2 and steps[-1] >= 16)


def test_none_are_wanted_with_a_limit_of_zero(tmp_path: Path) -> None:
    assert not VectorStore(tmp_path, 0, 1000).wants_next()


def test_large_models_are_thinned_layer_by_layer(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, limit=2, max_bytes=80)
    assert [store.stride(numel) for numel in (1, 10, 11, 100)] == [1, 1, 2, 10]
    vector = np.arange(1007, dtype=np.float32)
    thinned, numels = thin(vector, (3, 0, 4, 1000), 2)
    assert numels == (2, 0, 2, 500)
    assert [thinned[0] in (0, 1), thinned[1], thinned[2] in (3, 4), thinned[3] in (5, 6)] == [True, 2, True, True]
    assert ((thinned[4:] - 7) // 2 == np.arange(500)).all()
    assert 0.4 < np.mean(thinned[4:] % 2) < 0.6  # not always the same one
    assert thin(vector, (7, 1000), 1)[0] is vector


def test_a_run_without_vectors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run directory must hold raw vectors, got"):
        snapshots(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, 5, 1000)
    store.wants_next()
    store.save(snapshot(0))
    path = tmp_path / "vectors" / "step-00000000.npz"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"step-00000000\.npz must be a snapshot that a recorder wrote"):
            snapshots(tmp_path)
    np.savez(path, head=np.array(json.dumps({"format": 99})))
    with pytest.raises(ValueError, match="format must be 1, got 99"):
        snapshots(tmp_path)
    path.unlink()
    store.save(snapshot(0, (1.0, float("nan"), 2.0)))
    with pytest.raises(ValueError, match="must hold finite vectors that fit their layers"):
        snapshots(tmp_path)
