"""Text of a user into settings: an object of a table, and a number that a launcher puts into the environment."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

Made = TypeVar("Made")

_SWITCH = {"true": True, "false": False}
_READERS: dict[str, Callable[[str], object]] = {
    "bool": lambda text: _SWITCH[text.lower()],
    "int": int,
    "float": float,
    "str": str,
    "Mode": str,  # the class checks which
}


def parse_spec(kind: str, spec: str, table: Mapping[str, type[Made]]) -> Made:
    """Make an object of a table's class; fields of a type that text cannot give are no settings.

    Args:
        kind: what the table holds, for the messages.
        spec: name, then settings.
        table: name -> dataclass.

    Raises:
        ValueError: an unknown name or setting, or a value that does not fit.

    Example:
        >>> @dataclasses.dataclass
        ... class Loud:
        ...     volume: int = 3
        >>> parse_spec("voice", "loud:volume=11", {"loud": Loud})
        Loud(volume=11)
    """
    name, *settings = spec.strip().split(":")
    if name not in table:
        raise ValueError(f"{kind} must be one of {', '.join(table)}, got {name!r}. Correct it.")
    fields = {
        field.name: str(field.type)
        for field in dataclasses.fields(table[name])  # type: ignore[arg-type]  # all rows are dataclasses
        if field.type in _READERS
    }
    values: dict[str, object] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in fields:
            known = ", ".join(f"{field}=..." for field in fields) or "none"
            raise ValueError(f"settings of {name} must be among {known}, got {setting!r}. Correct {spec!r}.")
        if key in values:
            raise ValueError(f"{key} of {name} must be given once, got {spec!r}. Leave one out.")
        try:
            values[key] = _READERS[fields[key]](text)
        except (KeyError, ValueError):
            remedy = "Join settings by colons, not commas." if "," in text else f"Correct {spec!r}."
            raise ValueError(f"{key} of {name} must be a {fields[key]}, got {text!r}. {remedy}") from None
    return table[name](**values)


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
