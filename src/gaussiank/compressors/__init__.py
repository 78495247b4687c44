"""Which entries to send: one compressor a file, one line each in the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from .capped import Capped
from .chunktopk import ChunkTopK
from .compressor import Compressor, Selection, Taken, Turn, finish_take
from .dense import Dense
from .dgc import DGC
from .gaussiank import GaussianK
from .mstopk import MSTopK
from .randomk import RandomK
from .sidco import SIDCo
from .topk import TopK
from .trimmedtopk import TrimmedTopK

COMPRESSORS: dict[str, type[Compressor]] = {
    "dense": Dense,
    "topk": TopK,
    "gaussiank": GaussianK,
    "dgc": DGC,
    "trimmedtopk": TrimmedTopK,
    "mstopk": MSTopK,
    "sidco": SIDCo,
    "chunktopk": ChunkTopK,
    "randomk": RandomK,
}
"""Name -> class. The command line, the docs and the contract tests are driven by this table."""

__all__ = [
    "COMPRESSORS",
    "DGC",
    "Capped",
    "ChunkTopK",
    "Compressor",
    "Dense",
    "GaussianK",
    "MSTopK",
    "RandomK",
    "SIDCo",
    "Selection",
    "Taken",
    "TopK",
    "TrimmedTopK",
    "Turn",
    "compressor_names",
    "finish_take",
    "parse_compressor",
]

_SWITCH = {"true": True, "false": False}
_READERS: dict[str, Callable[[str], object]] = {
    "bool": lambda text: _SWITCH[text.lower()],
    "int": int,
    "float": float,
    "Mode": str,
}


def compressor_names() -> tuple[str, ...]:
    """Return the names that ``compress`` and the command line take."""
    return tuple(COMPRESSORS)


def parse_compressor(spec: str) -> Compressor:
    """Make a compressor from text: a name, then settings, ``name:field=value:field=value``.

    Raises:
        ValueError: an unknown name or setting, or a value that does not fit.

    Example:
        >>> parse_compressor("randomk:shared=true:seed=3")
        RandomK(shared=True, feedback=True, seed=3)
        >>> parse_compressor("topkk")
        Traceback (most recent call last):
            ...
        ValueError: compressor must be one of dense, topk, gaussiank, dgc, trimmedtopk, mstopk, sidco, chunktopk, \
randomk, got 'topkk'. Correct it.
    """
    name, *settings = spec.strip().split(":")
    if name not in COMPRESSORS:
        raise ValueError(f"compressor must be one of {', '.join(COMPRESSORS)}, got {name!r}. Correct it.")
    # mypy cannot know that all rows of the table are dataclasses
    fields = {field.name: field for field in dataclasses.fields(COMPRESSORS[name])}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in fields:
            known = ", ".join(f"{field}=..." for field in fields) or "none"
            raise ValueError(f"settings of {name} must be among {known}, got {setting!r}. Correct {spec!r}.")
        if key in values:
            raise ValueError(f"{key} of {name} must be given once, got {spec!r}. Leave one out.")
        try:
            values[key] = _READERS[str(fields[key].type)](text)
        except (KeyError, ValueError):
            raise ValueError(f"{key} of {name} must be a {fields[key].type}, got {text!r}. Correct {spec!r}.") from None
    return COMPRESSORS[name](**values)
