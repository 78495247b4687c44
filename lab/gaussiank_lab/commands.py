"""How a function becomes a command: what holds for the options of all of them is checked here, once."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from gaussiank_lab.outputs import require_file, require_folder

LARGEST_FLOAT = 3.4e38  # of float32, in which models compute
LARGEST_INT = 2**53  # that JSON holds exactly wherever it is read


def require_numbers(given: Mapping[str, Any]) -> None:
    """Raise unless every number is finite and no larger than torch can take.

    Args:
        given: settings or options, by name; what is no number is passed over.

    Raises:
        ValueError: one is not; names it.

    Example:
        >>> require_numbers({"lr": 0.1, "model": "lenet5"})
        >>> require_numbers({"lr": float("inf")})
        Traceback (most recent call last):
            ...
        ValueError: lr must be a finite number, got inf. Give another one.
    """
    for name, value in given.items():
        if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
            rule = f"at most {LARGEST_FLOAT:g}" if math.isfinite(value) else "a finite number"
            raise ValueError(f"{name} must be {rule}, got {value:g}. Give another one.")
        if isinstance(value, int) and not abs(value) <= LARGEST_INT:
            raise ValueError(f"{name} must be at most {LARGEST_INT:,}, got {value}. Give another one.")


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
