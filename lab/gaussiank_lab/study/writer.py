"""The files of a recorder: lines of JSON, raw vectors, and a TensorBoard if that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gaussiank_lab.records import RecordWriter, written_before
from gaussiank_lab.study.boards import Board, open_board, show
from gaussiank_lab.study.sample import Sample
from gaussiank_lab.study.study import STUDY_NAME
from gaussiank_lab.study.vectors import Snapshot, VectorStore


class StudyWriter:
    """Write a study, on the worker that records it; nothing before ``open``.

    Args:
        run_dir: directory of the study.
        store: of the raw vectors.
        tensorboard: also write below ``RUN/tensorboard``.
    """

    def __init__(self, run_dir: Path, store: VectorStore, *, tensorboard: bool) -> None:
        self._run_dir, self._store, self._tensorboard = run_dir, store, tensorboard
        self._lines: RecordWriter | None = None
        self._board: Board | None = None

    @property
    def is_open(self) -> bool:
        """Whether this worker writes."""
        return self._lines is not None

    @property
    def written(self) -> tuple[int, int]:
        """Bytes of the lines so far and their CRC-32, all on disk; of nothing when it is not open."""
        return (0, 0) if self._lines is None else self._lines.sync()

    def open(self, opening: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
        """Begin a study, or go on with one where ``state_dict`` was taken; one whose file is gone begins anew.

        Raises:
            FileExistsError: a study is there, and it is not gone on with.
            ValueError: it does not begin as it did when its state was taken.
        """
        begin = b""
        if state is not None:
            begin = written_before(self._run_dir / STUDY_NAME, state["size_bytes"], state["crc32"])
            self._store.load_state_dict(state["vectors"])
        self._lines = RecordWriter(self._run_dir, begin or None, STUDY_NAME).__enter__()
        if not begin:
            self._lines.write(opening)
        if self._tensorboard:
            self._board = open_board(self._run_dir / "tensorboard")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record, and draw it on the board."""
        assert self._lines is not None  # it is open
        self._lines.write(record)
        if self._board is not None:
            show(self._board, record)

    def keep_vectors(self, sample: Sample, rank: int, numel: int, *, segments_per_layer: bool) -> None:
        """Keep what a sample selected from, if it is its turn."""
        if self._store.wants_next():
            stride = self._store.stride(numel)
            pieces = sample.pieces(stride, segments_per_layer=segments_per_layer and stride == 1)
            if pieces:
                self._store.save(Snapshot(sample.step, rank, stride, pieces))

    def state_dict(self) -> dict[str, Any]:
        """Return how far the files have come, which are on disk as far as that."""
        size_bytes, crc32 = self.written
        return {"size_bytes": size_bytes, "crc32": crc32, "vectors": self._store.state_dict()}

    def close(self) -> None:
        """Close the files."""
        if self._lines is not None:
            self._lines.__exit__(None, None, None)
            self._lines = None
        if self._board is not None:
            self._board.close()
            self._board = None
