"""The collectives of torch that ours are made of: each is started at once and counts the bytes that it sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllreduceOptions  # torch.distributed shows it at run time only

Result = TypeVar("Result")
Asked = ParamSpec("Asked")
AnyFuture = torch.futures.Future[Any]


class MessageError(RuntimeError):
    """A backend could not send or receive: another worker is gone, or late. Other errors are this worker's own."""


@dataclass(frozen=True, eq=False)
class Work(Generic[Result]):
    """A message under way.

    Args:
        works: torch's handles; none for a worker that this message does not concern.
        read: makes the result once the message has arrived.
        sent: tensors that must live until they are sent.
        point_to_point: whether Gloo has no future for it.
    """

    works: Sequence[dist.Work]
    read: Callable[[], Result]
    sent: Sequence[Tensor] = ()
    point_to_point: bool = False

    @property
    def future(self) -> AnyFuture:
        """Torch's future of a message among all workers."""
        (work,) = self.works
        return work.get_future()

    def wait(self) -> Result:
        """Wait and return what arrived.

        Through the future where there is one: it may be asked inside its own callback, a handle may not.

        Raises:
            MessageError: a worker is gone.
        """
        try:
            if self.point_to_point:
                for work in self.works:
                    work.wait()
            elif self.works:
                self.future.wait()
        except RuntimeError as error:  # what backends raise
            raise MessageError(str(error)) from error
        return self.read()


Start = Callable[Concatenate["Communicator", Asked], Work[Result]]


def _started_or_lost(start: Start[Asked, Result]) -> Start[Asked, Result]:
    """Let a backend that refuses to start a message raise ``MessageError``."""

    @wraps(start)
    def started(comm: Communicator, /, *arguments: Asked.args, **more: Asked.kwargs) -> Work[Result]:
        try:
            return start(comm, *arguments, **more)
        except RuntimeError as error:
            raise MessageError(str(error)) from error

    return started


class Communicator:
    """Connect the workers of a group: start messages among them, and count what this worker sends.

    Args:
        group: process group, or None for the default one.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = known_group(group)
        self.rank = self.group.rank()
        self.world_size = self.group.size()
        self._sent_bytes = [0]

    @property
    def sent_bytes(self) -> int:
        """Bytes sent so far, as the ring, tree and pairwise algorithms of Gloo and NCCL send them."""
        return self._sent_bytes[0]

    def within(self, group: dist.ProcessGroup) -> Communicator:
        """Return a communicator for some of the workers that counts its bytes here."""
        comm = Communicator(group)
        comm._sent_bytes = self._sent_bytes
        return comm

    @_started_or_lost
    def all_reduce(self, vector: Tensor, op: Any = dist.ReduceOp.SUM) -> Work[Tensor]:
        """Reduce ``vector`` in place."""
        work = self.group.allreduce([vector], reduction(op))  # torch's wrapper around it doubles the time of the call
        self._sent_bytes[0] += ring_bytes(vector, self.world_size)
        return Work([work], lambda: vector)

    @_started_or_lost
    def all_gather(self, row: Tensor, *, straight: bool = True) -> Work[Tensor]:
        """Send uint8 ``[bytes]`` to all; the result is ``[world_size, bytes]``.

        On a CPU short rows go ``straight`` from each worker to every other: Gloo's all-gather is a ring, in which each
        of ``world_size - 1`` messages waits for the one before it. On an accelerator rows are filled up to a multiple
        of 128 bytes: NCCL copies 16 bytes at a time only where every rank's row begins at such an address.
        """
        filling = 0 if row.is_cpu else -row.numel() % _ALIGNED_BYTES
        if filling:
            row = torch.cat([row, row.new_zeros(filling)])
        rows = row.new_empty(self.world_size * row.numel())
        if straight and row.is_cpu and rows.numel() <= STRAIGHT_BYTES:
            work = dist.all_to_all_single(rows, row.repeat(self.world_size), group=self.group, async_op=True)
        else:
            work = _all_gather(rows, row, group=self.group, async_op=True)
        self._sent_bytes[0] += (self.world_size - 1) * row.numel()
        length = row.numel() - filling
        return Work([_started(work)], lambda: rows.view(self.world_size, -1)[:, :length], [row])

    @_started_or_lost
    def all_to_all(self, rows: Tensor) -> Work[Tensor]:
        """Send row r of ``[world_size, ...]`` to rank r; row r of the result comes from rank r."""
        received = torch.empty_like(rows)
        work = dist.all_to_all_single(received.view(-1), rows.view(-1), group=self.group, async_op=True)
        self._sent_bytes[0] += (self.world_size - 1) * rows[0].numel() * rows.element_size()
        return Work([_started(work)], lambda: received, [rows])

    @_started_or_lost
    def all_to_all_uneven(self, rows: Sequence[Tensor], received_bytes: Sequence[int]) -> Work[list[Tensor]]:
        """Send row r, of any length, to rank r; the lengths that come back must be known."""
        sizes = [row.numel() for row in rows]
        joined = torch.cat(list(rows))
        received = joined.new_empty(sum(received_bytes))
        work = dist.all_to_all_single(received, joined, list(received_bytes), sizes, group=self.group, async_op=True)
        self._sent_bytes[0] += sum(sizes) - sizes[self.rank]
        return Work([_started(work)], lambda: list(received.split(list(received_bytes))), [joined])

    @_started_or_lost
    def broadcast(self, vector: Tensor, root: int) -> Work[Tensor]:
        """Overwrite ``vector`` with that of ``root``, a rank of the group."""
        work = dist.broadcast(vector, dist.get_global_rank(self.group, root), group=self.group, async_op=True)
        place = (self.rank - root) % self.world_size
        self._sent_bytes[0] += _children(place, self.world_size) * vector.numel() * vector.element_size()
        return Work([_started(work)], lambda: vector)

    @_started_or_lost
    def sendrecv(self, row: Tensor, peer: int) -> Work[Tensor]:
        """Send a row to rank ``peer`` of the group and receive one of the same length from it."""
        received = torch.empty_like(row)
        works = dist.batch_isend_irecv([self._sending(row, peer), self._receiving(received, peer)])
        return Work(works, lambda: received, [row], point_to_point=True)

    @_started_or_lost
    def send(self, row: Tensor, peer: int) -> Work[None]:
        """Send a row to rank ``peer`` of the group."""
        works = dist.batch_isend_irecv([self._sending(row, peer)])
        return Work(works, lambda: None, [row], point_to_point=True)

    @_started_or_lost
    def receive(self, row: Tensor, peer: int) -> Work[Tensor]:
        """Overwrite ``row`` with what rank ``peer`` of the group sends."""
        works = dist.batch_isend_irecv([self._receiving(row, peer)])
        return Work(works, lambda: row, point_to_point=True)

    def noop(self) -> Work[None]:
        """Send nothing, so that this worker stays in step with those that do."""
        return Work([], lambda: None)

    def _sending(self, row: Tensor, peer: int) -> dist.P2POp:
        self._sent_bytes[0] += row.numel() * row.element_size()
        return dist.P2POp(dist.isend, row, dist.get_global_rank(self.group, peer), group=self.group)

    def _receiving(self, row: Tensor, peer: int) -> dist.P2POp:
        return dist.P2POp(dist.irecv, row, dist.get_global_rank(self.group, peer), group=self.group)


def known_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Return the group, or the default one for None."""
    group = group or dist.group.WORLD
    assert group is not None  # torch.distributed is initialized, or there would be nobody to send to
    return group


def reduction(op: Any) -> AllreduceOptions:
    """Return the options of an all-reduce, for the call beneath torch's wrapper, which takes half the time."""
    options = AllreduceOptions()
    options.reduceOp = op
    if hasattr(options, "asyncOp"):  # newer torch: without it, NCCL would compute on the caller's stream
        options.asyncOp = True
    return options


_ALIGNED_BYTES = 128

STRAIGHT_BYTES = 1 << 20
"""All rows of an all-gather together, at most, that go straight. Longer ones fill their links in a ring as well, and
where several workers share a link, a ring crosses it less often."""


def gather_steps(world_size: int, row_bytes: float) -> tuple[int, int]:
    """Return how many messages of an all-gather follow each other in a ring, and how many go straight to all.

    Example:
        >>> gather_steps(8, 1000), gather_steps(8, 1e6), gather_steps(1, 1000)
        ((0, 1), (7, 0), (0, 0))
    """
    if world_size == 1:
        return 0, 0
    return (0, 1) if world_size * row_bytes <= STRAIGHT_BYTES else (world_size - 1, 0)


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
