"""Which collective each vector takes: a given one, or by ``auto`` the fastest; the only room that changes its mind."""

from __future__ import annotations

from gaussiank.collectives import COLLECTIVES, named_here
from gaussiank.parsing import parse_spec

from .policy import Auto, CollectivePlan, Policy
from .tuner import Link

POLICIES: dict[str, type[Policy]] = {**COLLECTIVES, "auto": Auto}
"""Name -> class, as ``compress`` and the command line take it: every collective, and ``auto``."""

__all__ = ["POLICIES", "Auto", "CollectivePlan", "Link", "Policy", "parse_policy", "policy_names"]


def policy_names() -> tuple[str, ...]:
    """Return the names that ``compress`` and the command line take."""
    return tuple(POLICIES)


def parse_policy(spec: str) -> Policy:
    """Make a collective, or ``auto``, from text: a name, then settings, ``name:field=value:field=value``.

    Raises:
        ValueError: an unknown name or setting, or a value that does not fit.

    Example:
        >>> parse_policy("oktopk:slack=1.5")
        Split(trim=True, slack=1.5, rebalance=True)
        >>> parse_policy("auto:mbit=100:every=0") == Auto(mbit=100, every=0)
        True
        >>> parse_policy("allgather:size=3")
        Traceback (most recent call last):
            ...
        ValueError: settings of allgather must be among slack=..., ask=..., got 'size=3'. Correct 'allgather:size=3'.
    """
    return parse_spec("collective", named_here(spec), POLICIES)
