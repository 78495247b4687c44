"""Raw vectors of a run, a bounded number of bytes of them, for replay."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaussiank.durable import naming

Float32s = NDArray[np.float32]

FOLDER = "vectors"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class StoredPiece:
    """One accumulated vector as a selection saw it: a bucket, or a whole model.

    Attributes:
        names: parameters in it.
        numels: their lengths, in the vector that is kept.
        accumulated: float32 ``[sum of numels]``.
        hints: one for each vector that k was counted on: just below the smallest magnitude that was sent, or NaN.
        density: that was asked for.
        k: entries that were asked for in the run.
        kept: entries that were sent in the run.
        contraction: share of energy that stayed in the run.
    """

    names: tuple[str, ...]
    numels: tuple[int, ...]
    accumulated: Float32s
    hints: tuple[float, ...]
    density: float
    k: int
    kept: int
    contraction: float


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All vectors of one step on one worker.

    Attributes:
        step: number of the step.
        rank: of the worker.
        stride: of how many entries one was kept; 1 keeps all.
        pieces: the vectors.
    """

    step: int
    rank: int
    stride: int
    pieces: tuple[StoredPiece, ...]


class VectorStore:
    """Keep at most ``limit`` snapshots in ``RUN/vectors``, spread over the run, in at most ``max_bytes``.

    When one too many has come, every second is deleted and from then on only every second is kept. A model too large
    for its share of the bytes is thinned: one of every n entries of each layer, which leaves shares of entries and of
    energy as they are, to sampling error.

    Args:
        run_dir: directory of the run.
        limit: most snapshots to keep.
        max_bytes: most bytes that all of them take.
    """

    def __init__(self, run_dir: str | Path, limit: int, max_bytes: int) -> None:
        self._folder = Path(run_dir) / FOLDER
        self._limit = limit
        self._each_bytes = max_bytes // max(1, limit)
        self._period = 1
        self._offered = 0
        self._kept: dict[int, Path] = {}

    def wants_next(self) -> bool:
        """Tell whether the next snapshot would be kept; counts it as offered."""
        number, self._offered = self._offered, self._offered + 1
        return self._limit > 0 and number % self._period == 0

    def state_dict(self) -> dict[str, Any]:
        """Return what was offered and kept."""
        kept = {number: path.name for number, path in self._kept.items()}
        return {"period": self._period, "offered": self._offered, "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken: the same are kept as if nothing had come between.

        A file that was deleted since counts as kept, because so it did then.
        """
        self._period, self._offered = state["period"], state["offered"]
        self._kept = {number: self._folder / name for number, name in state["kept"].items()}

    def stride(self, numel: int) -> int:
        """Return every how many entries one fits into a snapshot."""
        return max(1, -(-4 * numel // max(4, self._each_bytes)))

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot, and delete others when there are too many."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step-{snapshot.step:08d}.npz"
        _write(path, snapshot)
        self._kept[self._offered - 1] = path
        while len(self._kept) > self._limit:
            self._period *= 2
            for number in [number for number in self._kept if number % self._period]:
                self._kept.pop(number).unlink(missing_ok=True)


def thin(vector: Float32s, numels: Sequence[int], stride: int) -> tuple[Float32s, tuple[int, ...]]:
    """Take one of every ``stride`` entries of each layer; returns them end to end, and how many of each.

    Which one is random, always the same: a fixed one would meet the same few columns of a matrix again and again.
    """
    if stride == 1:
        return vector, tuple(numels)
    random = np.random.default_rng(0)
    parts = []
    for numel, end in zip(numels, np.cumsum(numels), strict=True):
        places = np.arange(0, numel, stride)
        places += random.integers(0, np.minimum(stride, numel - places)) if numel else 0
        parts.append(vector[end - numel : end][places])
    return np.concatenate(parts), tuple(part.size for part in parts)


def snapshots(run_dir: str | Path) -> list[Snapshot]:
    """Read all snapshots of a run, in the order of their steps.

    Raises:
        FileNotFoundError: the run kept none.
        ValueError: a file is damaged, of another format, or holds infinities or NaN.
    """
    folder = Path(run_dir) / FOLDER
    paths = sorted(folder.glob("step-*.npz"))
    if not paths:
        raise FileNotFoundError(
            f"run directory must hold raw vectors, got {folder} with none. Record with Recorder(..., vectors=8)."
        )
    return [_read(path) for path in paths]


def _write(path: Path, snapshot: Snapshot) -> None:
    pieces = [{**asdict(piece), "accumulated": None} for piece in snapshot.pieces]
    head = {"format": FORMAT, "step": snapshot.step, "rank": snapshot.rank, "stride": snapshot.stride, "pieces": pieces}
    arrays: dict[str, Any] = {f"accumulated_{i}": piece.accumulated for i, piece in enumerate(snapshot.pieces)}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path), unfinished.open("wb") as file:
            np.savez(file, head=np.array(json.dumps(head)), **arrays)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path: Path) -> Snapshot:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            head = json.loads(str(data["head"]))
            if head["format"] != FORMAT:
                raise ValueError(f"format must be {FORMAT}, got {head['format']!r}")
            pieces = []
            for i, saved in enumerate(head["pieces"]):
                fields = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
                pieces.append(StoredPiece(**{**fields, "accumulated": data[f"accumulated_{i}"]}))
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must be a snapshot that a recorder wrote, got {error}. Delete it.") from None
    for piece in pieces:
        if not np.isfinite(piece.accumulated).all() or piece.accumulated.size != sum(piece.numels):
            raise ValueError(
                f"{path} must hold finite vectors that fit their layers, got infinities, NaN or another length. "
                "Delete it."
            )
    return Snapshot(head["step"], head["rank"], head["stride"], tuple(pieces))
