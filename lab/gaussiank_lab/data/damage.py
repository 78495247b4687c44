"""One sentence for a file that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def damaged(path: Path, rule: str, got: object, advice: str = "Fetch it again.") -> ValueError:
    """Make the error for a file that breaks ``rule``."""
    return ValueError(f"{path} must {rule}, got {got}. {advice}")


@contextmanager
def reading(path: Path, rule: str, *errors: type[Exception], advice: str = "Fetch it again.") -> Iterator[None]:
    """Turn ``errors`` raised inside into a sentence that names the file.

    Raises:
        ValueError: one of them was raised.
        FileNotFoundError: the file is not there.
    """
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} must exist, got nothing there. {advice}") from None
    except errors as error:
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise damaged(path, rule, f"an error ({text})", advice) from None
