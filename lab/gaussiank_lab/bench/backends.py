"""Switching between the backends of the ops, from one measurement to the next."""

from __future__ import annotations

from contextlib import ExitStack

from gaussiank import ops


class Switch:
    """Lets the ops run on one backend after the other; leaving it puts back the one that ran before.

    Example:
        >>> with Switch() as switch:
        ...     switch.to("reference")
        ...     ops.backends().active
        'reference'
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def to(self, backend: str) -> None:
        """Use a backend of the ops from now on; for a library that is none (a peer's), the usual one."""
        self._stack.close()
        if backend in ops.backends().available:
            self._stack.enter_context(ops.use_backend(backend))
