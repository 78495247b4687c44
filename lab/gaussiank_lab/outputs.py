"""Where results go: whole files, folders that can be written, a standard output that keeps up, a last sentence."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from gaussiank import durable


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


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name beside it, then rename it, so that no reader ever sees half of it.

    Args:
        path: file to write or replace; its directory is created when missing.
        content: all of it.

    Returns:
        ``path``.

    Example:
        >>> import tempfile
        >>> write_whole(Path(tempfile.mkdtemp()) / "new" / "page.html", b"<p>").read_bytes()
        b'<p>'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_whole(path, content)
    return path


STANDARD_OUTPUT = "standard output"


class _Steady:
    """Write to a stream for as long as somebody reads it, and then to nowhere.

    ``gaussiank train | head -1`` must not end the training. Any other failure is raised with the stream's name.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            self._write_nowhere()  # what is left in the buffer too, or Python fails again when it ends, with status 120
            if not isinstance(error, BrokenPipeError):
                error.filename = error.filename or STANDARD_OUTPUT
                raise

    def _write_nowhere(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def steady_output() -> None:
    """Let standard output outlive its reader, once."""
    if not isinstance(sys.stdout, _Steady):
        sys.stdout = _Steady(sys.stdout)


def leave(sentence: str) -> None:
    """Write a sentence where torch's launchers look for the cause of a failure; without a launcher, do nothing.

    It is the format of torch's own error files without their traceback, which the worker has printed already.
    """
    named = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not named:
        return
    content = {"message": {"message": sentence, "extraInfo": {"timestamp": str(int(time.time()))}}}
    unfinished = Path(f"{named}.{os.getpid()}")
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.replace(named)  # a launcher that finds half a file fails itself
