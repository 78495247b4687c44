"""The collectives of torch that ours are made of: each is started at once and counts the bytes that it sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")
AnyFuture = torch.futures.Future[Any]


@dataclass(frozen=True, eq=False)
class Message(Generic[Result]):
    """A message under way.

    Args:
        works: torch's handles; none for a worker that this message does not concern.
        read: makes the result once the message has arrived.
        sent: tensors that must live until they are sent.
    """

    works: Sequence[dist.Work]
    read: Callable[[], Result]
    sent: Sequence[Tensor] = ()

    @property
    def future(self) -> AnyFuture:
        """Torch's future of the one handle; point-to-point messages have none on Gloo."""
        (work,) = self.works
        return work.get_future()

    def wait(self) -> Result:
        """Wait and return what arrived; raises when a worker is gone.

        Through the future where there is only one handle: it may be asked inside its own callback, a handle may not.
        """
        if len(self.works) == 1:
            self.future.wait()
        else:
            for work in self.works:
                work.wait()
        return self.read()


class Wire:
    """Start messages among the workers of a group, and count what this worker sends.

    Args:
        group: process group, or None for the default one.

    Attributes:
        sent_bytes: bytes put on the wire so far, as the ring and pairwise algorithms of Gloo and NCCL send them.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)
        self.sent_bytes = 0

    def all_reduce(self, vector: Tensor, op: Any = dist.ReduceOp.SUM) -> Message[Tensor]:
        """Reduce ``vector`` in place."""
        work = dist.all_reduce(vector, op=op, group=self.group, async_op=True)
        self.sent_bytes += ring_bytes(vector, self.world_size)
        return Message([_started(work)], lambda: vector)

    def all_gather(self, row: Tensor) -> Message[Tensor]:
        """Send uint8 ``[bytes]`` to all; the result is ``[world_size, bytes]``."""
        rows = row.new_empty(self.world_size * row.numel())
        work = _all_gather(rows, row, group=self.group, async_op=True)
        self.sent_bytes += (self.world_size - 1) * row.numel()
        return Message([_started(work)], lambda: rows.view(self.world_size, -1), [row])

    def all_to_all(self, rows: Tensor) -> Message[Tensor]:
        """Send row r of ``[world_size, ...]`` to rank r; row r of the result comes from rank r."""
        received = torch.empty_like(rows)
        work = dist.all_to_all_single(received.view(-1), rows.view(-1), group=self.group, async_op=True)
        self.sent_bytes += (self.world_size - 1) * rows[0].numel() * rows.element_size()
        return Message([_started(work)], lambda: received, [rows])

    def all_to_all_uneven(self, rows: Sequence[Tensor], received_bytes: Sequence[int]) -> Message[list[Tensor]]:
        """Send row r, of any length, to rank r; the lengths that come back must be known."""
        sizes = [row.numel() for row in rows]
        joined = torch.cat(list(rows))
        received = joined.new_empty(sum(received_bytes))
        work = dist.all_to_all_single(received, joined, list(received_bytes), sizes, group=self.group, async_op=True)
        self.sent_bytes += sum(sizes) - sizes[self.rank]
        return Message([_started(work)], lambda: list(received.split(list(received_bytes))), [joined])

    def broadcast(self, vector: Tensor, root: int) -> Message[Tensor]:
        """Overwrite ``vector`` with that of ``root``, a rank of the group."""
        work = dist.broadcast(vector, dist.get_global_rank(self._known_group, root), group=self.group, async_op=True)
        place = (self.rank - root) % self.world_size
        self.sent_bytes += _children(place, self.world_size) * vector.numel() * vector.element_size()
        return Message([_started(work)], lambda: vector)

    def swap(self, row: Tensor | None, peer: int | None, received_bytes: int) -> Message[Tensor]:
        """Send ``row`` to rank ``peer`` of the group and receive one of ``received_bytes``; either may be nothing."""
        received = torch.empty(received_bytes, dtype=torch.uint8, device=None if row is None else row.device)
        if peer is None or (row is None and not received_bytes):
            return Message([], lambda: received)
        there = dist.get_global_rank(self._known_group, peer)
        calls = [] if row is None else [dist.P2POp(dist.isend, row, there, group=self.group)]
        if received_bytes:
            calls.append(dist.P2POp(dist.irecv, received, there, group=self.group))
        works = dist.batch_isend_irecv(calls)
        self.sent_bytes += 0 if row is None else row.numel()
        return Message(works, lambda: received, [] if row is None else [row])

    @property
    def _known_group(self) -> dist.ProcessGroup:
        group = self.group or dist.group.WORLD
        assert group is not None  # the rank was asked for, so it exists
        return group


# all_gather_into_tensor has had this name since torch 2.13, which deprecates the old one
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def ring_bytes(vector: Tensor, world_size: int) -> int:
    """Return what one worker sends to all-reduce ``vector`` in a ring, in bytes.

    Example:
        >>> ring_bytes(torch.zeros(100), world_size=4)
        600
    """
    return 2 * (world_size - 1) * vector.numel() * vector.element_size() // world_size


def _children(place: int, world_size: int) -> int:
    """Count whom a worker passes a broadcast on to, in a binomial tree with the root at place 0."""
    levels = (world_size - 1).bit_length()
    return sum(place + (1 << level) < world_size for level in range(place.bit_length(), levels))


def _started(work: dist.Work | None) -> dist.Work:
    assert work is not None  # async_op, and this worker is in the group
    return work
