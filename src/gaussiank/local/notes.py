"""What workers tell each other of a round: where they are, how long a difference is, a hash of the agreed weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from gaussiank.comm import Communicator, Done, Executor, Work

OnOutlier = Literal["raise", "leave_out", "clip"]
_CHUNK = 1 << 18  # entries that are hashed at once, in a core's cache


class Note(NamedTuple):
    """What one worker tells of a round.

    Attributes:
        step: its inner step.
        fragment: whose turn it is.
        norm: of its difference, infinity or NaN where that is not finite.
        digest: of its agreed weights, 0 in a round that does not check them.
    """

    step: int
    fragment: int
    norm: float
    digest: int

    def send(self, executor: Executor, device: torch.device) -> Done:
        """Tell it to all workers in one message; the future holds every worker's, uint8 ``[world_size, 32]``."""
        label = f"the note of fragment {self.fragment} in step {self.step}"
        row = torch.tensor(self, dtype=torch.float64).view(torch.uint8).to(device)
        # over the executor's group, as means are: not an all-reduce, of which a ring would make 2 (P - 1) messages
        return executor.submit(
            lambda: label, lambda members: _Sent(Communicator(members).all_gather(row)), _Sent.arrived,
            multi_phase=False, device=device,
        )  # fmt: skip


@dataclass(eq=False)
class _Sent:
    """A note under way."""

    work: Work[Any]

    def advance(self) -> bool:
        """It is one message."""
        return False

    def arrived(self) -> Tensor:
        """Return every worker's note."""
        rows: Tensor = self.work.result
        return rows


def digest(vectors: Sequence[Tensor]) -> int:
    """Return a hash of 32 bits of some float vectors, the same on every device.

    Example:
        >>> digest([torch.ones(3)]) == digest([torch.ones(3)]), digest([torch.ones(3)]) == digest([torch.zeros(3)])
        (True, False)
    """
    total = 0
    for vector in vectors:
        words = vector.view(torch.int32)
        # odd weights have an inverse modulo 2**32: no single change is lost where a product wraps
        odd = torch.arange(1, 2 * min(_CHUNK, words.numel()), 2, dtype=torch.int32, device=words.device)
        sums = [(part * odd[: part.numel()]).sum() for part in words.split(_CHUNK)]
        for part_sum in torch.stack(sums).tolist():  # a device is waited for once a vector
            total = (total * 1_000_003 + part_sum) % 2**64
    return (total ^ total >> 32) % 2**32


def require_together(notes: Sequence[Note]) -> None:
    """Raise unless all workers are in the same round and have agreed on the same weights.

    Raises:
        RuntimeError: names the ranks that differ from most.
    """
    places = [(note.step, note.fragment) for note in notes]
    usual = max(places, key=places.count)
    for rank, place in enumerate(places):
        if place != usual:
            raise RuntimeError(
                f"local.step() must be called as often on every worker, got inner step {place[0]} on rank {rank} and "
                f"{usual[0]} on others. Call it after each step of the optimizer, also one that a GradScaler left out."
            )
    digests = [note.digest for note in notes]
    others = [rank for rank, own in enumerate(digests) if own != max(digests, key=digests.count)]
    if others:
        raise RuntimeError(
            f"agreed weights must have the same bits on every worker, got others on rank "
            f"{', '.join(map(str, others))} before step {usual[0]}. Something wrote to them there: memory is at fault, "
            "or code. Load the last checkpoint on every worker."
        )


def outliers(norms: Sequence[float], limit: float | None) -> dict[int, str]:
    """Return the ranks whose difference would poison the mean, with what is wrong with it.

    Args:
        norms: of each worker's difference.
        limit: how many times the median a norm may be; None for any finite one.

    Example:
        >>> outliers([1.0, 2.0, 30.0, math.nan], limit=5.0)
        {2: 'has norm 30, the median is 2', 3: 'is not finite'}
    """
    median = median_of(norms)
    found = {}
    for rank, norm in enumerate(norms):
        if not math.isfinite(norm):
            found[rank] = "is not finite"
        elif limit is not None and norm > limit * median:
            found[rank] = f"has norm {norm:.3g}, the median is {median:.3g}"
    return found


def median_of(norms: Sequence[float]) -> float:
    """Return the lower median of the finite ones, 0 without any."""
    finite = sorted(filter(math.isfinite, norms))
    return finite[(len(finite) - 1) // 2] if finite else 0.0


def read(told: Done) -> list[Note]:
    """Wait for what ``Note.send`` has begun: every worker's note, in rank order."""
    rows = told.wait().cpu().contiguous().view(torch.float64).tolist()
    return [Note(int(step), int(fragment), norm, int(hashed)) for step, fragment, norm, hashed in rows]


class OutlierRule:
    """What becomes of workers whose difference would poison the mean.

    Args:
        on_outlier: an error on every worker, or what is done with the difference.
        norm_limit: how many times the median norm a difference may have; None for any finite one.

    Raises:
        ValueError: they are unknown, or do not go together.
    """

    def __init__(self, on_outlier: OnOutlier, norm_limit: float | None) -> None:
        if on_outlier not in get_args(OnOutlier):
            raise ValueError(
                f"on_outlier must be one of {', '.join(get_args(OnOutlier))}, got {on_outlier!r}. Choose one of them."
            )
        if norm_limit is not None and not norm_limit > 1:
            raise ValueError(f"norm_limit must be above 1, got {norm_limit}. 10 allows ten times the median norm.")
        if on_outlier == "clip" and norm_limit is None:
            raise ValueError(
                "norm_limit must be given with on_outlier='clip', got None. 10 clips what is ten medians long."
            )
        self.on_outlier, self.norm_limit = on_outlier, norm_limit
        self._told: set[int] = set()  # ranks whose outlying difference was warned of

    def judge(self, notes: Sequence[Note], first: str, own: int) -> None:
        """Raise where workers are apart, or an outlier is an error; else warn of it once a rank.

        Args:
            notes: of every worker, in rank order.
            first: name of the fragment's first parameter.
            own: this worker's rank.

        Raises:
            RuntimeError: so it is.
        """
        require_together(notes)
        for rank, fault in outliers([note.norm for note in notes], self.norm_limit).items():
            what = f"the difference of rank {rank} {fault} in the round of step {notes[0].step} ({first} on)"
            if self.on_outlier == "raise":
                raise RuntimeError(
                    f"differences must be finite and within norm_limit, but {what}. Nothing was changed; look for the "
                    "cause there, lower the learning rate, or set on_outlier='leave_out'."
                )
            if rank not in self._told and own in (0, rank):
                clipped = self.on_outlier == "clip" and "finite" not in fault
                done = "It is clipped to the median." if clipped else "It is left out, and begins again."
                warnings.warn(f"{what}. {done} This is said once a rank.", stacklevel=5)
            self._told.add(rank)
