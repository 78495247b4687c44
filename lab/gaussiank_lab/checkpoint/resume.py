"""Find the checkpoint that a run goes on from, and refuse one that does not fit, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaussiank_lab.checkpoint.format import FORMS, MANIFEST_NAME, CheckpointFolder, Manifest

CHECKPOINTS_NAME = "checkpoints"
MAY_DIFFER = ("workers", "data_dir", "device", "eval_steps", "timeout_s")
"""Settings that a resumed run may have otherwise than the run that it goes on with."""
LENGTH = ("steps", "epochs")
"""Settings that it may have otherwise where the steps that are taken stay the same; see ``require_length``."""


@dataclass(frozen=True)
class Resume:
    """A checkpoint to go on from.

    Args:
        path: its folder.
        manifest: what it holds.
    """

    path: Path
    manifest: Manifest

    @property
    def run_dir(self) -> Path:
        """Directory of the run that wrote it, wherever both have been moved together."""
        return Path(self.path.parent, self.manifest.run_dir).resolve()

    @property
    def is_last(self) -> bool:
        """Whether no later checkpoint of the same run is there."""
        last = CheckpointFolder(self.path.parent).last()
        return last is not None and last.resolve() == self.path.resolve()

    def require_whole(self, ranks: tuple[int, ...] | None = None) -> None:
        """Raise unless the files that some ranks need have the bytes that were written; all files if None.

        Raises:
            ValueError: one has not; names it.
        """
        manifest = self.manifest
        parts = manifest.parts
        manifest.require_whole(self.path, parts if ranks is None else FORMS[manifest.form].needed(parts, ranks))

    def require_same(self, given: Mapping[str, Any]) -> None:
        """Raise unless settings are those of the run.

        Args:
            given: settings named anew.

        Raises:
            ValueError: one differs, and is none of ``MAY_DIFFER`` or ``LENGTH``; names it.
        """
        saved = self.manifest.config
        for name, value in given.items():
            plain = list(value) if isinstance(value, tuple) else value
            if name not in (*MAY_DIFFER, *LENGTH) and plain != saved.get(name):
                raise ValueError(
                    f"{name} must be {saved.get(name)!r}, as in {self.path}, got {plain!r}. "
                    "Leave it out, or start a new run without --resume."
                )

    def require_model(self, parameters: Mapping[str, list[int]], data_digest: str) -> None:
        """Raise unless model and data are those that the checkpoint was made with.

        Raises:
            ValueError: they are not.
        """
        saved = self.manifest.parameters
        for name in [*saved, *parameters]:
            if saved.get(name) != parameters.get(name):
                raise ValueError(
                    f"parameter {name} must have shape {saved.get(name)}, as in {self.path}, got "
                    f"{parameters.get(name)}. Resume with the model that was saved."
                )
        if data_digest != self.manifest.data_digest:
            raise ValueError(
                f"data must have digest {self.manifest.data_digest[:12]}, as in {self.path}, got "
                f"{data_digest[:12]}. Give the data that the run began with."
            )


def find_resume(path: Path) -> Resume:
    """Open a checkpoint: the one named, the last of a folder of them, or the last of a run.

    Args:
        path: of a checkpoint, of the folder that holds them, or of a run's directory.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its manifest is damaged or of another format.
    """
    for folder in (path, path / CHECKPOINTS_NAME):
        if (folder / MANIFEST_NAME).is_file():
            return Resume(folder, Manifest.read(folder))
        if (last := CheckpointFolder(folder).last()) is not None:
            return Resume(last, Manifest.read(last))
    raise FileNotFoundError(
        f"resume must be a checkpoint, a folder of them or a run with some, got {path}, which holds none. "
        "Write some with --checkpoint-every."
    )


def last_usable(folder: Path) -> Resume | None:
    """Return the newest checkpoint whose every byte is right, or None: what a restarted run goes on from by itself."""
    for path in reversed(CheckpointFolder(folder).whole().values()):
        try:
            resume = Resume(path, Manifest.read(path))
            resume.require_whole()
        except ValueError:
            continue
        return resume
    return None
