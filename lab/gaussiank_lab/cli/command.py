"""How a function becomes a command: what holds for the options of all of them is checked here, once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from gaussiank_lab.limits import require_numbers
from gaussiank_lab.outputs import require_file, require_folder


class Commands(typer.Typer):
    """Commands whose numbers are checked, and whose first line of help the list of all shows whole.

    typer would cut it short.
    """

    def add(
        self, name: str | None = None, *, folders: Sequence[str] = (), files: Sequence[str] = ()
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Add a command.

        Args:
            name: of the command; the function's if None.
            folders: parameters that name folders to write to.
            files: parameters that name files to write.
        """

        def add(function: Callable[..., None]) -> Callable[..., None]:
            @functools.wraps(function)
            def checked(**given: Any) -> None:
                require_numbers(given)
                for option in (*folders, *files):
                    if (path := given[option]) is not None:
                        if path == Path() and "" in sys.argv:  # an empty text has become the folder that we are in
                            raise ValueError(f"{option} must be a path, got an empty one. Leave it out, or name one.")
                        (require_folder if option in folders else require_file)(path, option)
                function(**given)

            checked.writes = (*folders, *files)  # type: ignore[attr-defined]  # for whoever looks for what is not checked
            self.command(name, short_help=(function.__doc__ or "").partition("\n")[0])(checked)
            return function

        return add


def options_of(*settings: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of some dataclasses: name, type and help are written there, once.

    An option that is not given is None, so that a recipe or a file may have its value. Tuples are given as text, with
    commas between; fields of yes or no get ``--name`` and ``--no-name``. The help is the field's line under ``Args``.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parameters = []
        for one in settings:
            kinds, said = get_type_hints(one), _documented(one)
            for field in dataclasses.fields(one):
                kind = _given_as(kinds[field.name])
                flag = field.name.replace("_", "-")
                flags = (f"--{flag}/--no-{flag}",) if kind is bool else ()
                annotation = Annotated[kind | None, typer.Option(*flags, help=said[field.name])]  # type: ignore[valid-type]
                parameters.append(
                    inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
                )
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return function

    return decorate


def _given_as(kind: Any) -> type:
    """Return the type of an option for a field of some type."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _given_as(next(part for part in get_args(kind) if part is not NoneType))
    return str if origin in (tuple, Literal) else kind


def _documented(settings: type) -> dict[str, str]:
    """Return the line of each field under ``Args`` in the docstring of a dataclass."""
    text = inspect.getdoc(settings) or ""
    lines = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    found = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", lines[1] if lines else "", re.MULTILINE)
    joined = {name: " ".join(line.split()).replace("``", "") for name, line in found}
    return {name: line[:1].upper() + line[1:] for name, line in joined.items()}


def parts(text: str) -> tuple[str, ...]:
    """Split a list that is separated by commas.

    Example:
        >>> parts("topk, gaussiank,")
        ('topk', 'gaussiank')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Read a list of numbers that is separated by commas.

    Raises:
        ValueError: one is not a finite number.
    """
    return tuple(_number(option, part, "numbers") for part in parts(text))


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Read a list of whole numbers that is separated by commas; 1e6 is one.

    Raises:
        ValueError: one is not a whole number.
    """
    found = [(part, _number(option, part, "whole numbers")) for part in parts(text)]
    for part, value in found:
        if not value.is_integer():
            raise _refused(option, part, "whole numbers")
    return tuple(int(value) for _, value in found)


def _number(option: str, text: str, rule: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _refused(option, text, rule)
    return value


def _refused(option: str, text: str, rule: str) -> ValueError:
    return ValueError(f"{option} must be {rule} separated by commas, got {text!r}. Correct it.")
