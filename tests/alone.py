"""A pytest plugin (``-p tests.alone``) that keeps the lab and what it installs out of reach of the library's tests.

The processes that a test starts with ``spawn`` are not covered; ``make core`` covers them, in an environment that has
only the library.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

LAB = frozenset({"gaussiank_lab", "typer", "rich", "matplotlib", "jinja2", "PIL", "scipy"})


class Refuse(MetaPathFinder):
    """Answer for the modules of the lab that they are not installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = fullname.partition(".")[0]
        if name in LAB:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Refuse())
