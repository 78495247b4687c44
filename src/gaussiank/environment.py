"""Numbers that a launcher such as torchrun gives in environment variables, checked where they are read."""

from __future__ import annotations

import os


def number_from(name: str, default: int, *, least: int = 0, most: int | None = None) -> int:
    """Read a whole number from an environment variable.

    Args:
        name: of the variable.
        default: what counts where it is not set.
        least: smallest value that makes sense.
        most: largest, or None.

    Raises:
        ValueError: it is set to anything else; names the variable.

    Example:
        >>> import os
        >>> os.environ["GAUSSIANK_DOC"] = "3"
        >>> number_from("GAUSSIANK_DOC", 1), number_from("GAUSSIANK_DOC_2", 1)
        (3, 1)
    """
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least or (most is not None and number > most):
        rule = f"at least {least}" if most is None else f"in [{least}, {most}]"
        raise ValueError(
            f"environment variable {name} must be a whole number {rule}, got {text!r}. torchrun sets it; "
            "unset it otherwise."
        )
    return number
