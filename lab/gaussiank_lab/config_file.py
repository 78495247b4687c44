"""A run's settings as a file: written beside its records, and given back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gaussiank_lab.config import TrainConfig
from gaussiank_lab.files import write_whole

CONFIG_NAME = "config.json"


def write_config(run_dir: Path, config: TrainConfig) -> None:
    """Write every setting of a run to ``RUN/config.json``."""
    text = json.dumps(config.as_record(), indent=2) + "\n"
    write_whole(run_dir / CONFIG_NAME, text.encode())


def read_config(path: Path) -> dict[str, Any]:
    """Read settings that a run has written, or a part of them that was written by hand.

    Args:
        path: JSON file, or the directory of a run.

    Returns:
        Values for ``TrainConfig``, of the right types; what they say is checked there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object, or a field is unknown or of another type; names it.
    """
    file = path / CONFIG_NAME if path.is_dir() else path
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"config must be a file, got {file}, which does not exist. Correct it.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"config must be a JSON file, got {file} ({error}). Correct it.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"config must hold a JSON object, got {type(fields).__name__} in {file}. Correct it.")
    return checked_fields(fields, str(file))


def checked_fields(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return ``fields`` with a tuple of methods, or name the first that is unknown or of another type."""
    kinds = get_type_hints(TrainConfig)
    for name, value in fields.items():
        if name not in kinds:
            raise ValueError(f"fields of {where} must be among {', '.join(kinds)}, got {name!r}. Correct or remove it.")
        if not _is_a(value, kinds[name]):
            kind = "list of texts" if name == "methods" else _kind_name(kinds[name])
            raise ValueError(f"{name} of {where} must be a {kind}, got {value!r}. Correct it.")
    return {name: _plain(value, kinds[name]) for name, value in fields.items()}


def _plain(value: Any, kind: Any) -> Any:
    """Undo what JSON does to types: tuples become lists, and 1.0 may be written as 1."""
    if isinstance(value, list):
        return tuple(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and float in (kind, *get_args(kind)) else value


def _is_a(value: object, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(_is_a(value, part) for part in get_args(kind))
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    if origin is Literal:
        return isinstance(value, str)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def _kind_name(kind: Any) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return " or ".join("text" if get_origin(part) is Literal else names[part] for part in parts)
