"""How workers agree on the mean of what they selected: one collective a file, one line each in the table."""

from __future__ import annotations

import importlib
import warnings
from typing import Any, cast

from gaussiank.cost import Traffic
from gaussiank.parsing import parse_spec

from .all_gather import AllGather
from .base import (
    Collective,
    DenseAllReduce,
    Exchange,
    ExchangeContext,
    Outcome,
    entries_within,
    fitting_wire,
    require_feedback,
)
from .hierarchical import Hierarchical
from .leader import Leader
from .packing import EXACT
from .split import Split
from .tree import Tree

COLLECTIVES: dict[str, type[Collective]] = {
    "dense": DenseAllReduce,
    "allgather": AllGather,
    "split": Split,
    "leader": Leader,
    "tree": Tree,
    "hierarchical": Hierarchical,
}
"""Name -> class; the docs and the contract tests are driven by this table, ``auto`` chooses from it."""

PAPERS = {"oktopk": "split", "gtopk": "tree"}
"""What the papers call a collective -> its name here, which hints, records and configurations are saved with."""

__all__ = [
    "COLLECTIVES",
    "EXACT",
    "PAPERS",
    "AllGather",
    "Collective",
    "DenseAllReduce",
    "Exchange",
    "ExchangeContext",
    "Hierarchical",
    "Leader",
    "Outcome",
    "Split",
    "Traffic",
    "Tree",
    "collective_names",
    "entries_within",
    "fitting_wire",
    "named_here",
    "parse_collective",
    "require_feedback",
]


def collective_names() -> tuple[str, ...]:
    """Return the names of all collectives; ``compress`` and the command line take ``auto`` as well."""
    return tuple(COLLECTIVES)


def parse_collective(spec: str) -> Collective:
    """Make a collective from text: a name, then settings, ``name:field=value:field=value``.

    Raises:
        ValueError: an unknown name or setting, or a value that does not fit.

    Example:
        >>> parse_collective("split:slack=1.5")
        Split(trim=True, slack=1.5, rebalance=True)
        >>> parse_collective("allgather:size=3")
        Traceback (most recent call last):
            ...
        ValueError: settings of allgather must be among slack=..., ask=..., got 'size=3'. Correct 'allgather:size=3'.
    """
    if spec.strip().split(":")[0] == "auto":
        return cast(Collective, _moved("parse_collective('auto')", "autotune.parse_policy")(spec))
    return parse_spec("collective", named_here(spec), COLLECTIVES)


def named_here(spec: str) -> str:
    """Return a spec with the paper's name of a collective replaced by its name here.

    Example:
        >>> named_here("oktopk:slack=1.5"), named_here("allgather")
        ('split:slack=1.5', 'allgather')
    """
    name, colon, settings = spec.strip().partition(":")
    return PAPERS.get(name, name) + colon + settings


_MOVED = {
    "Auto": "autotune.Auto",
    "Done": "comm.Done",
    "Engine": "comm.Executor",
    "Link": "autotune.Link",
    "Promise": "comm.Promise",
    "await_all": "comm.await_all",
    "engine_of": "comm.executor_of",
    "group_timeout_s": "comm.group_timeout_s",
    "require_agreement": "comm.require_agreement",
    "ring_bytes": "comm.all_reduce_bytes",
    "then": "comm.then",
    "together": "comm.together",
}


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        return _moved(name, _MOVED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _moved(name: str, place: str) -> Any:
    """Return what stood here before it got a room of its own."""
    warnings.warn(f"{__name__}.{name} has moved. Use gaussiank.{place}.", DeprecationWarning, stacklevel=3)
    room, new = place.split(".")
    return getattr(importlib.import_module(f"gaussiank.{room}"), new)
