"""Files that are whole or not there: written, synced to disk, and only then given their name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_BLOCK_BYTES = 1 << 20


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in the ``OSError`` of what is written to it: the system does not, when a disk is full for example."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


class HashingFile:
    """Write a new file, take its SHA-256 on the way, and sync it to disk at the end.

    Args:
        path: must not exist.

    Example:
        >>> import tempfile
        >>> with HashingFile(Path(tempfile.mkdtemp(), "part")) as file:
        ...     _ = file.write(b"abc")
        >>> file.size_bytes, file.sha256[:8]
        (3, 'ba7816bf')
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._digest = hashlib.sha256()
        self._failed: OSError | None = None

    @property
    def sha256(self) -> str:
        """Digest of what has been written so far."""
        return self._digest.hexdigest()

    def __enter__(self) -> HashingFile:
        self._file = self.path.open("xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with naming(self.path), self._file:
            if self._failed is not None:  # torch's zip writer swallows it and complains of a wrong position instead
                raise self._failed
            if error is None:
                self.flush()
                os.fsync(self._file.fileno())

    def write(self, data: bytes) -> int:
        """Append bytes.

        Raises:
            OSError: they could not be written, for want of room or permission; again when the file is left.
        """
        self._digest.update(data)
        try:
            written = self._file.write(data)
        except OSError as error:
            self._failed = error
            raise
        self.size_bytes += written
        return written

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._file.flush()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sync_file(path: Path) -> None:
    """Make sure that a file's bytes are on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make sure that the names in a folder are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader, now or after a crash, finds the old bytes or the new ones, never a part."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path), unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def publish_folder(unfinished: Path, path: Path) -> None:
    """Give a folder, whose files are synced, its name; what had that name before is deleted after."""
    sync_folder(unfinished)
    old = unfinished.with_name(f"{unfinished.name}.old")
    if path.exists():
        path.rename(old)
    unfinished.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)
