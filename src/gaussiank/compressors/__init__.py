"""Which entries to send: one compressor a file, one line each in the table."""

from __future__ import annotations

import warnings
from typing import Any

from gaussiank.ops import Taken
from gaussiank.parsing import parse_spec

from .capped import Capped
from .chunktopk import ChunkTopK
from .compressor import Compressor, SelectContext, Selection, finish_take
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
    "SelectContext",
    "Selection",
    "Taken",
    "TopK",
    "TrimmedTopK",
    "compressor_names",
    "finish_take",
    "parse_compressor",
]


def __getattr__(name: str) -> Any:
    if name != "Turn":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("compressors.Turn is called SelectContext. Use that name.", DeprecationWarning, stacklevel=2)
    return SelectContext


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
    return parse_spec("compressor", spec, COMPRESSORS)
