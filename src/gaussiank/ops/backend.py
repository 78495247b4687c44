"""Which backend runs the ops: the best that the processor can, or the one that was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from . import library

VARIABLE = "GAUSSIANK_BACKEND"
"""Environment variable that names the backend of a process; unset, the fastest available one runs."""

_chosen: str | None = None


class Backends(NamedTuple):
    """Backends of this process.

    Attributes:
        available: names, fastest last; ``reference`` is always there.
        active: name of the one that runs.
    """

    available: tuple[str, ...]
    active: str


def available() -> tuple[str, ...]:
    """Return the names of the backends that this machine can run, fastest last."""
    return ("reference", *library.names())


def active() -> str:
    """Return the name of the backend that runs.

    Raises:
        ValueError: the environment asks for one that this machine cannot run.
    """
    global _chosen  # noqa: PLW0603  the one setting of the process
    if _chosen is None:
        _chosen = _checked(os.environ.get(VARIABLE) or available()[-1], VARIABLE)
    return _chosen


def backends() -> Backends:
    """Tell which backends this machine can run, and which one runs.

    ``reference`` is plain PyTorch, on any device. The others are the native CPU kernels, for float32 residuals:
    ``scalar`` (``neon`` on arm64), ``avx2``, ``avx512``. All give the same bits. The environment variable
    ``GAUSSIANK_BACKEND`` chooses one for a process.

    Returns:
        The names.

    Raises:
        ValueError: the environment asks for one that this machine cannot run.

    Example:
        >>> backends().available[0]
        'reference'
    """
    return Backends(available(), active())


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops of the whole process, all threads, with one backend; for tests and measurements.

    Args:
        name: one of ``backends().available``.

    Raises:
        ValueError: this machine cannot run it.

    Example:
        >>> with use_backend("reference"):
        ...     backends().active
        'reference'
    """
    global _chosen  # noqa: PLW0603  the one setting of the process
    before, _chosen = _chosen, _checked(name, "name")
    try:
        yield
    finally:
        _chosen = before


def kernels() -> int | None:
    """Return the number of the active native backend, or None when the reference runs."""
    return library.number(_chosen or active())


def _checked(name: str, argument: str) -> str:
    if name not in available():
        raise ValueError(
            f"{argument} must be one of {', '.join(available())} on this machine, got {name!r}. "
            "Install gaussiank where there is a C compiler to have the native ones."
        )
    return name
