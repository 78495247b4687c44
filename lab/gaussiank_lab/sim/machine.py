"""What a worker computes: the model's buckets, and what selection, codec and decoding cost on its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .checks import require_above_zero, require_at_least
from .curve import Curve


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
