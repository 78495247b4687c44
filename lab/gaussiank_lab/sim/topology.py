"""The cluster: links, tiers of machines that share them, devices, and how they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaussiank_lab.sim.curve import Curve, require_above_zero, require_at_least

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Describe jitter and stragglers as distributions; all factors have the mean 1 but those of stragglers.

    Args:
        compute_cv: deviation over mean of a worker's compute time, lognormal, drawn anew at every step.
        network_cv: the same of each message's time.
        straggler_share: share of the workers that are slow throughout.
        straggler_factor: how many times their compute takes, at least 1.

    Raises:
        ValueError: a number out of its range.
    """

    compute_cv: float = 0.0
    network_cv: float = 0.0
    straggler_share: float = 0.0
    straggler_factor: float = 1.0

    def __post_init__(self) -> None:
        require_at_least("compute_cv", self.compute_cv, 0, "0.03 is a quiet cluster.")
        require_at_least("network_cv", self.network_cv, 0, "0 is a quiet network.")
        require_at_least("straggler_factor", self.straggler_factor, 1, "1 is no straggler.")
        if not 0 <= self.straggler_share <= 1:
            raise ValueError(f"straggler_share must be in [0, 1], got {self.straggler_share:g}. It is a share.")

    @property
    def varies(self) -> bool:
        """Whether workers differ at all."""
        return self.compute_cv > 0 or (self.straggler_share > 0 and self.straggler_factor > 1)

    def compute_factors(self, rng: np.random.Generator, workers: int, steps: int) -> Floats:
        """Draw ``[steps, workers]`` factors; one column stands for all workers when they do not differ."""
        if not self.varies:
            return np.ones((steps, 1))
        slow = rng.random(workers) < self.straggler_share
        return _lognormal(rng, self.compute_cv, (steps, workers)) * np.where(slow, self.straggler_factor, 1.0)

    def network_factors(self, rng: np.random.Generator, steps: int, exchanges: int) -> Floats:
        """Draw ``[steps, exchanges]`` factors."""
        return _lognormal(rng, self.network_cv, (steps, exchanges))


def _lognormal(rng: np.random.Generator, cv: float, shape: tuple[int, int]) -> Floats:
    sigma = math.sqrt(math.log1p(cv * cv))
    return np.exp(sigma * rng.standard_normal(shape) - sigma * sigma / 2) if cv else np.ones(shape)


@dataclass(frozen=True)
class Link:
    """Describe the way from one worker, node or region to the others of its kind.

    A message of n bytes takes ``latency_s + message_s + (n - burst_bytes) * byte_s``, and at least the first two.

    Args:
        name: for errors and reports.
        bandwidth_bits_s: what one end can send, bits a second.
        latency_s: from one end to the other, seconds; half a round trip.
        message_s: what handling one message costs at its ends, seconds; messages of one sender wait for each other.
        duplex: whether sending and receiving go on at once, each at the full rate.
        burst_bytes: what a message sends at once before it is held to the bandwidth: the bucket that a cloud or a
            traffic shaper fills up again during pauses.
        oversubscription: sum of what all ends can send, over what the fabric between them carries, at least 1.

    Raises:
        ValueError: no bandwidth, or a number below its least; names the field and the link.

    Example:
        >>> link = Link("10 GbE", bandwidth_bits_s=10e9, latency_s=50e-6)
        >>> f"{link.send_s(1.25e6):.5f}"
        '0.00105'
    """

    name: str
    bandwidth_bits_s: float
    latency_s: float = 0.0
    message_s: float = 0.0
    duplex: bool = True
    burst_bytes: float = 0.0
    oversubscription: float = 1.0

    def __post_init__(self) -> None:
        require_above_zero(
            f"bandwidth_bits_s of link {self.name}", self.bandwidth_bits_s, "Without a link there is one worker."
        )
        require_at_least(f"latency_s of link {self.name}", self.latency_s, 0, "Half a ping, in seconds.")
        require_at_least(f"message_s of link {self.name}", self.message_s, 0, "Seconds a message.")
        require_at_least(f"burst_bytes of link {self.name}", self.burst_bytes, 0, "Bytes, not bits.")
        require_at_least(
            f"oversubscription of link {self.name}", self.oversubscription, 1, "1 is a fabric that carries everything."
        )

    @property
    def byte_s(self) -> float:
        """Seconds a byte when all ends send and receive at once, as in every collective here."""
        return 8 / self.bandwidth_bits_s * self.oversubscription * (1 if self.duplex else 2)

    @property
    def start_s(self) -> float:
        """Seconds that an empty message takes."""
        return self.latency_s + self.message_s

    def send_s(self, sent_bytes: float) -> float:
        """Return the seconds that a message takes when all ends send one."""
        return self.start_s + self.busy_s(sent_bytes)

    def busy_s(self, sent_bytes: float) -> float:
        """Return the seconds that bytes which are sent together keep the link busy."""
        return max(0.0, sent_bytes - self.burst_bytes) * self.byte_s


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


@dataclass(frozen=True)
class Bucket:
    """Gradients that become ready together.

    Args:
        numel: entries, at least 1.
        backward_s: seconds of backward from the bucket before to this one.
    """

    numel: int
    backward_s: float


@dataclass(frozen=True)
class Workload:
    """Describe one step of a model on one worker without any communication.

    Args:
        name: of the model.
        buckets: in the order in which backward fills them.
        forward_s: seconds of forward and loss.
        optimizer_s: seconds of the optimizer's step.
        samples: examples a worker and step.
        epoch_samples: examples of an epoch, over all workers.
        input_s: seconds that the input pipeline needs for a step; a shorter step waits for it.

    Raises:
        ValueError: no bucket, or a time below 0; names the field.
    """

    name: str
    buckets: tuple[Bucket, ...]
    forward_s: float
    optimizer_s: float = 0.0
    samples: int = 1
    epoch_samples: int = 1
    input_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.buckets:
            raise ValueError(f"buckets of model {self.name} must be at least one, got none. Give its sizes.")
        for index, bucket in enumerate(self.buckets):
            require_at_least(f"numel of bucket {index} of {self.name}", bucket.numel, 1, "Leave empty buckets out.")
            require_at_least(f"backward_s of bucket {index} of {self.name}", bucket.backward_s, 0, "Seconds.")
        for name in ("forward_s", "optimizer_s", "input_s"):
            require_at_least(f"{name} of model {self.name}", getattr(self, name), 0, "Seconds.")
        require_at_least(f"samples of model {self.name}", self.samples, 1, "Examples a worker and step.")
        require_above_zero(f"seconds of a step of {self.name}", self.alone_s, "A step takes time.")

    @property
    def numel(self) -> int:
        """Entries of the whole gradient."""
        return sum(bucket.numel for bucket in self.buckets)

    @property
    def backward_s(self) -> float:
        """Seconds of the whole backward."""
        return sum(bucket.backward_s for bucket in self.buckets)

    @property
    def alone_s(self) -> float:
        """Seconds of a step of one worker that neither selects nor sends."""
        return max(self.input_s, self.forward_s + self.backward_s + self.optimizer_s)

    def epoch_steps(self, workers: int) -> float:
        """Return the steps of an epoch that ``workers`` share."""
        return max(1.0, self.epoch_samples / (self.samples * workers))


@dataclass(frozen=True)
class Device:
    """Say what our own work costs on a worker's device; curves are measured, or derived from its memory's bandwidth.

    Args:
        name: for reports.
        select: compressor -> seconds over numel, of adding the residual, selecting and writing back.
        encode: seconds over entries.
        decode: seconds over entries, of decoding and adding them.
        merge: seconds over entries, of merging selections between messages.
        clear: seconds over numel, of the zeros that a mean starts from.
        cast: seconds over numel, of going to 16 bits and back.
        exchange: collective -> seconds that an exchange among several workers takes beyond its messages and all else
            here: hand-overs between threads, turns on busy cores.
        contention: seconds that backward loses for each second that a message is under way at the same time; 0 where
            the network needs nothing of the device.
    """

    name: str
    select: Mapping[str, Curve] = field(default_factory=dict)
    encode: Curve = field(default_factory=Curve)
    decode: Curve = field(default_factory=Curve)
    merge: Curve = field(default_factory=Curve)
    clear: Curve = field(default_factory=Curve)
    cast: Curve = field(default_factory=Curve)
    exchange: Mapping[str, float] = field(default_factory=dict)
    contention: float = 0.0

    def __post_init__(self) -> None:
        require_at_least(f"contention of device {self.name}", self.contention, 0, "0 is none, 1 stops backward.")

    def select_s(self, compressor: str, numel: float) -> float:
        """Return the seconds of a selection.

        Raises:
            ValueError: there is no curve for this compressor.
        """
        if not self.select:
            return 0.0
        if compressor not in self.select:
            raise ValueError(
                f"select of device {self.name} must have a curve for {compressor}, got {', '.join(self.select)}. "
                "Measure it with gaussiank probe."
            )
        return self.select[compressor](numel)
