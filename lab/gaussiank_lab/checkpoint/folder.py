"""A folder of checkpoints: which are whole, which is the last, which are too old."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gaussiank.durable import publish_folder, sync_folder
from gaussiank_lab.checkpoint.manifest import MANIFEST_NAME

_NAME = re.compile(r"(\d{2,})-[a-z0-9]+-step-(\d{8,})")


class Place(NamedTuple):
    """Where in a run a checkpoint was taken; later places are larger."""

    method_index: int
    step: int


class CheckpointFolder:
    """The checkpoints of one run. Only rank 0 changes it.

    Args:
        path: created when the first checkpoint is begun.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def whole(self) -> dict[Place, Path]:
        """Return the complete checkpoints, the oldest first; what a crash has left behind is none."""
        found = {}
        for path in self.path.glob("*-step-*") if self.path.is_dir() else ():
            name = _NAME.fullmatch(path.name)
            if name and (path / MANIFEST_NAME).is_file():
                found[Place(int(name[1]), int(name[2]))] = path
        return dict(sorted(found.items()))

    def last(self) -> Path | None:
        """Return the newest complete checkpoint, or None."""
        return next(reversed(self.whole().values()), None)

    def begin(self, place: Place, method: str) -> Path:
        """Make the folder in which a checkpoint is written; it does not count yet."""
        self.path.mkdir(parents=True, exist_ok=True)
        unfinished = self.unfinished(place, method)
        self.discard(unfinished)
        unfinished.mkdir()
        return unfinished

    def unfinished(self, place: Place, method: str) -> Path:
        """Name the folder that ``begin`` makes."""
        base = re.sub("[^a-z0-9]", "", method.partition(":")[0].lower()) or "method"
        return self.path / f".{place.method_index:02d}-{base}-step-{place.step:08d}"

    def publish(self, unfinished: Path) -> Path:
        """Let a written checkpoint count."""
        path = unfinished.with_name(unfinished.name.removeprefix("."))
        publish_folder(unfinished, path)
        return path

    def discard(self, unfinished: Path) -> None:
        """Delete a checkpoint that could not be finished, if it is there."""
        shutil.rmtree(unfinished, ignore_errors=True)

    def prune(self, keep: int) -> None:
        """Delete all but the last ``keep`` checkpoints, and what crashes have left behind."""
        for path in list(self.whole().values())[:-keep]:  # first the name: half of one must not look whole
            path.rename(path.with_name(f".{path.name}.old"))
        for path in self.path.glob(".*-step-*"):
            self.discard(path)
        sync_folder(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out while this process lives, however it ends.

        Raises:
            RuntimeError: another run writes here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"checkpoint_dir must not be in use, got {self.path}, where another run is writing. "
                    "End that run, or choose another directory."
                ) from None
            yield
        finally:
            os.close(handle)
