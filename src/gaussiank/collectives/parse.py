"""A collective from text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from .collective import Collective

_SWITCH = {"true": True, "false": False}
_READERS: dict[str, Callable[[str], object]] = {
    "bool": lambda text: _SWITCH[text.lower()],
    "int": int,
    "float": float,
    "str": str,
}


def parse(spec: str, table: Mapping[str, type[Collective]]) -> Collective:
    """Make a collective of a table from ``name:field=value:field=value``; fields of other types cannot be written so.

    Raises:
        ValueError: an unknown name or setting, or a value that does not fit.
    """
    name, *settings = spec.strip().split(":")
    if name not in table:
        raise ValueError(f"collective must be one of {', '.join(table)}, got {name!r}. Correct it.")
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
            raise ValueError(f"{key} of {name} must be a {fields[key]}, got {text!r}. Correct {spec!r}.") from None
    return table[name](**values)
