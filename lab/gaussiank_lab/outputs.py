"""Where a command may write: found out before its work begins, not after."""

from __future__ import annotations

import os
from pathlib import Path


def require_folder(path: Path, option: str = "out") -> None:
    """Raise unless files can be written to a folder, which is there or could be made.

    Nothing is left behind: a file is made, and deleted, in the first folder of its path that is there.

    Args:
        path: of the folder.
        option: that named it, for the message.

    Raises:
        ValueError: it is a file, lies below one, is a link to nothing, or cannot be written.
    """
    there = next(one for one in (path, *path.absolute().parents) if os.path.lexists(one))
    got = ""
    if there.is_symlink() and not there.exists():
        got = f"{there}, which is a link to nothing"
    elif not there.is_dir():
        got = f"{there}, which is a file"
    else:
        probe = there / f".gaussiank-{os.getpid()}"
        try:
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            got = f"{there}: {error.strerror}"
    if got:
        raise ValueError(f"{option} must be a folder that can be written, got {got}. Give another one.")


def require_file(path: Path, option: str = "out") -> None:
    """Raise unless a file can be written, which is there or could be made; what it holds stays.

    Raises:
        ValueError: it is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise ValueError(f"{option} must be a file, got {path}, which is a folder. Add a name.")
    require_folder(path.parent, option)


def new_folder(path: Path) -> Path:
    """Make a folder of this name, or of this name and a number where that is taken, by a run of the same second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, wanted = 1, path
    while True:
        try:
            wanted.mkdir()
        except FileExistsError:
            number += 1
            wanted = path.with_name(f"{path.name}-{number}")
        else:
            return wanted
