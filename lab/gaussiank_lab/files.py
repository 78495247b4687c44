"""Files that are either whole or not there."""

from __future__ import annotations

from pathlib import Path

from gaussiank import durable


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
