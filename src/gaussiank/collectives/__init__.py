"""How workers agree: one collective a file, one line each in the table."""

from __future__ import annotations

from gaussiank.spec import parse_spec

from .agreement import require_agreement, together
from .all_gather import AllGather
from .attendance import await_all, group_timeout_s
from .auto import CANDIDATES, Auto
from .callbacks import then
from .collective import Call, Collective, Exchange, Outcome, Traffic
from .dense import DenseAllReduce
from .engine import Done, Engine, Promise, engine_of
from .fitting import entries_within, fitting_wire, require_feedback
from .hierarchical import Hierarchical
from .leader import Leader
from .line import ring_bytes
from .link import Link
from .rows import EXACT
from .split import Split
from .tree import Tree

COLLECTIVES: dict[str, type[Collective]] = {**CANDIDATES, "auto": Auto}
"""Name -> class; the command line, the docs and the contract tests are driven by this table."""

__all__ = [
    "COLLECTIVES",
    "EXACT",
    "AllGather",
    "Auto",
    "Call",
    "Collective",
    "DenseAllReduce",
    "Done",
    "Engine",
    "Exchange",
    "Hierarchical",
    "Leader",
    "Link",
    "Outcome",
    "Promise",
    "Split",
    "Traffic",
    "Tree",
    "await_all",
    "collective_names",
    "engine_of",
    "entries_within",
    "fitting_wire",
    "group_timeout_s",
    "parse_collective",
    "require_agreement",
    "require_feedback",
    "ring_bytes",
    "then",
    "together",
]


def collective_names() -> tuple[str, ...]:
    """Return the names that ``compress`` and the command line take."""
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
    return parse_spec("collective", spec, COLLECTIVES)
