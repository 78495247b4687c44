"""Standard output that nobody reads, or that is full: the work does not depend on it, and the message says so."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

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
