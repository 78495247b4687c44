"""Which link lies between which workers: node, rack, region."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .checks import require_at_least
from .curve import Curve
from .link import Link

ALGORITHMS = ("ring", "tree", "hierarchical")
STRAIGHT_BYTES = 2.0**20
"""What our all-gathers send straight over Gloo, at most, whose own is a ring."""
OPERATIONS = ("all_reduce", "all_gather", "all_to_all", "broadcast", "swap")


@dataclass(frozen=True)
class Tier:
    """Say what makes one unit of a cluster, and what connects its members.

    Args:
        name: ``node``, ``rack`` or ``region``.
        link: of each member to the others; members of the lowest tier are workers, of a higher one units below it.
        members: how many there are; None for the highest tier, which has as many as are asked for.
    """

    name: str
    link: Link
    members: int | None = None

    def __post_init__(self) -> None:
        if self.members is not None:
            require_at_least(f"members of tier {self.name}", self.members, 1, "Leave it out for as many as are asked.")


class Level(NamedTuple):
    """One tier as far as a number of workers fills it.

    Attributes:
        link: between the members.
        members: units that take part, at least 1.
        inside: workers in one member; they share its link.
    """

    link: Link
    members: int
    inside: int


@dataclass(frozen=True)
class Cluster:
    """Describe a cluster from the inside out.

    Args:
        name: for errors and reports.
        tiers: the lowest first: what connects workers in a node, nodes in a rack, and so on.
        algorithms: how its library can all-reduce; the fastest is taken, which favours dense methods.
        corrections: operation -> measured over modelled time, over message bytes; from a probe.
        straight_bytes: an all-gather of so many bytes in all goes straight from each worker to each other one, a longer
            one in a ring; ``STRAIGHT_BYTES`` where messages are Gloo's, 0 where they are NCCL's.

    Raises:
        ValueError: no tier, a tier in the middle without a number of members, or an unknown algorithm or operation.

    Example:
        >>> inside, outside = Link("PCIe", 1e11), Link("10 GbE", 1e10)
        >>> cluster = Cluster("lab", (Tier("node", inside, 4), Tier("rack", outside)))
        >>> [(level.members, level.inside) for level in cluster.levels(16)]
        [(4, 1), (4, 4)]
    """

    name: str
    tiers: tuple[Tier, ...]
    algorithms: tuple[str, ...] = ALGORITHMS
    corrections: Mapping[str, Curve] = field(default_factory=dict)
    straight_bytes: float = 0.0

    def __post_init__(self) -> None:
        if not self.tiers:
            raise ValueError(f"tiers of cluster {self.name} must be at least one, got none. Give the link of a node.")
        for tier in self.tiers[:-1]:
            if tier.members is None:
                raise ValueError(
                    f"members of tier {tier.name} must be given where a tier lies above it, got None. Say how many."
                )
        for argument, given, known in (
            ("algorithms", self.algorithms, ALGORITHMS),
            ("corrections", tuple(self.corrections), OPERATIONS),
        ):
            unknown = [name for name in given if name not in known]
            if unknown or (argument == "algorithms" and not given):
                raise ValueError(
                    f"{argument} of cluster {self.name} must be among {', '.join(known)}, got {', '.join(given)}. "
                    "Correct them."
                )

    @property
    def most_workers(self) -> float:
        """Workers that fit; infinity where the highest tier is open."""
        return math.prod(math.inf if tier.members is None else tier.members for tier in self.tiers)

    def levels(self, workers: int) -> tuple[Level, ...]:
        """Return the tiers that ``workers`` fill, those with one member left out; one unit is filled before the next.

        Raises:
            ValueError: they do not fit.
        """
        require_at_least("workers", workers, 1, "One worker sends nothing.")
        if workers > self.most_workers:
            raise ValueError(
                f"workers must be at most {self.most_workers:g} on {self.name}, got {workers}. "
                "Lower them, or describe a larger cluster."
            )
        levels, units, inside = [], workers, 1
        for tier in self.tiers:
            members = units if tier.members is None else min(units, tier.members)
            if members > 1:
                levels.append(Level(tier.link, members, inside))
            units, inside = math.ceil(units / members), inside * members
        return tuple(levels)

    def correct(self, operation: str, size_bytes: float, seconds: float) -> float:
        """Return a modelled time, multiplied by what a probe found to be wrong with it."""
        correction = self.corrections.get(operation)
        if correction is None or not correction.sizes:
            return seconds
        return seconds * correction(min(size_bytes, correction.sizes[-1]))  # no slope of an error is trusted
