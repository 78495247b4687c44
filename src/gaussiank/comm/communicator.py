"""Messages among the workers of a group: torch's collectives, started at once and counted; and torch's callbacks.

Callbacks are called and dropped by threads of a backend, which need Python's lock for both. A thread that asks for the
lock while Python finalizes is ended in the middle of a destructor, and the process aborts, although all its work is
done. So each callback is given to torch by ``then``, and the end of the process waits for ``settle``.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllreduceOptions  # torch.distributed shows it at run time only

from gaussiank.cost import STRAIGHT_BYTES

Result = TypeVar("Result")
AnyFuture = torch.futures.Future[Any]

_KEPT_S = 0.2  # for callbacks that have been called: the traceback of an error can hold one to the very end
_DROPS_S = 0.02  # without Python's lock, for what a backend still drops of a message: tensors, in microseconds


class MessageError(RuntimeError):
    """A backend could not send or receive: another worker is gone, or late. Other errors are this worker's own."""


@dataclass(frozen=True, eq=False)
class Work(Generic[Result]):
    """A message under way.

    Args:
        works: torch's handles; none for a worker that this message does not concern, or has waited for already.
        result: what ``wait`` returns; tensors in it are filled until then.
        sent: tensors that must live until they are sent.
        point_to_point: whether Gloo has no future for it.
    """

    works: list[dist.Work]
    result: Result
    sent: Sequence[Tensor] = ()
    point_to_point: bool = False

    def wait(self) -> Result:
        """Wait and return what arrived.

        Through the future where there is one: it may be asked inside its own callback, a handle may not.

        Raises:
            MessageError: a worker is gone.
        """
        try:
            if self.point_to_point:
                works = list(self.works)
                self.works.clear()  # Gloo would wait for another message
                for work in works:
                    work.wait()
            elif self.works:
                self.works[0].get_future().wait()
        except RuntimeError as error:  # what backends raise
            raise MessageError(str(error)) from error
        return self.result


class Communicator:
    """Connect the workers of a group: start messages among them, and count what this worker sends.

    Args:
        group: process group, or None for the default one.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group or known_group(group)
        self.rank = self.group.rank()
        self.world_size = self.group.size()
        self._sent_bytes = [0]

    @property
    def sent_bytes(self) -> int:
        """Bytes sent so far, as the ring, tree and pairwise algorithms of Gloo and NCCL send them."""
        return self._sent_bytes[0]

    def within(self, group: dist.ProcessGroup) -> Communicator:
        """Return a communicator for some of the workers that counts its bytes here."""
        part = Communicator(group)
        part._sent_bytes = self._sent_bytes
        return part

    def all_reduce(self, vector: Tensor, op: Any = dist.ReduceOp.SUM) -> Work[Tensor]:
        """Reduce ``vector`` in place."""
        work = _started(self.group.allreduce, [vector], reduction(op))  # torch's wrapper doubles the time of the call
        self._sent_bytes[0] += all_reduce_bytes(vector, self.world_size)
        return Work([work], vector)

    def all_gather(self, row: Tensor, *, straight: bool = True) -> Work[Tensor]:
        """Send uint8 ``[bytes]`` to all; the result is ``[world_size, bytes]``.

        On a CPU short rows go ``straight`` from each worker to every other: Gloo's all-gather is a ring, in which each
        of ``world_size - 1`` messages waits for the one before it. On an accelerator rows are filled up to a multiple
        of 128 bytes: NCCL copies 16 bytes at a time only where every rank's row begins at such an address.
        """
        length = row.numel()
        if not row.is_cpu and length % ALIGNED_BYTES:
            row = torch.cat([row, row.new_zeros(-length % ALIGNED_BYTES)])
        rows = row.new_empty(self.world_size * row.numel())
        goes_straight = straight and row.is_cpu and rows.numel() <= STRAIGHT_BYTES
        sent = row.repeat(self.world_size) if goes_straight else row
        start: Callable[..., Any] = dist.all_to_all_single if goes_straight else _all_gather
        work = _started(start, rows, sent, group=self.group, async_op=True)
        self._sent_bytes[0] += (self.world_size - 1) * row.numel()
        return Work([work], rows.view(self.world_size, -1)[:, :length], [sent])

    def all_to_all(self, rows: Tensor) -> Work[Tensor]:
        """Send row r of ``[world_size, ...]`` to rank r; row r of the result comes from rank r."""
        received = torch.empty_like(rows)
        work = _started(dist.all_to_all_single, received.view(-1), rows.view(-1), group=self.group, async_op=True)
        self._sent_bytes[0] += (self.world_size - 1) * rows[0].numel() * rows.element_size()
        return Work([work], received, [rows])

    def all_to_all_uneven(self, rows: Sequence[Tensor], received_bytes: Sequence[int]) -> Work[Sequence[Tensor]]:
        """Send row r, of any length, to rank r; the lengths that come back must be known."""
        sizes, lengths = [row.numel() for row in rows], list(received_bytes)
        joined = torch.cat(list(rows))
        received = joined.new_empty(sum(lengths))
        work = _started(dist.all_to_all_single, received, joined, lengths, sizes, group=self.group, async_op=True)
        self._sent_bytes[0] += sum(sizes) - sizes[self.rank]
        return Work([work], received.split(lengths), [joined])

    def broadcast(self, vector: Tensor, root: int) -> Work[Tensor]:
        """Overwrite ``vector`` with that of ``root``, a rank of the group."""
        source = dist.get_global_rank(self.group, root)
        work = _started(dist.broadcast, vector, source, group=self.group, async_op=True)
        place = (self.rank - root) % self.world_size
        self._sent_bytes[0] += _children(place, self.world_size) * vector.numel() * vector.element_size()
        return Work([work], vector)

    def sendrecv(self, row: Tensor, peer: int) -> Work[Tensor]:
        """Send a row to rank ``peer`` of the group and receive one of the same length from it."""
        received = torch.empty_like(row)
        works = _started(dist.batch_isend_irecv, [self._sending(row, peer), self._receiving(received, peer)])
        return Work(works, received, [row], point_to_point=True)

    def send(self, row: Tensor, peer: int) -> Work[None]:
        """Send a row to rank ``peer`` of the group."""
        works = _started(dist.batch_isend_irecv, [self._sending(row, peer)])
        return Work(works, None, [row], point_to_point=True)

    def receive(self, row: Tensor, peer: int) -> Work[Tensor]:
        """Overwrite ``row`` with what rank ``peer`` of the group sends."""
        works = _started(dist.batch_isend_irecv, [self._receiving(row, peer)])
        return Work(works, row, point_to_point=True)

    def noop(self) -> Work[None]:
        """Send nothing, so that this worker stays in step with those that do."""
        return Work([], None)

    def _sending(self, row: Tensor, peer: int) -> dist.P2POp:
        self._sent_bytes[0] += row.numel() * row.element_size()
        return dist.P2POp(dist.isend, row, dist.get_global_rank(self.group, peer), group=self.group)

    def _receiving(self, row: Tensor, peer: int) -> dist.P2POp:
        return dist.P2POp(dist.irecv, row, dist.get_global_rank(self.group, peer), group=self.group)


def _started(start: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return torch's handle of a message; ``MessageError`` where the backend refuses to start it."""
    try:
        work = start(*arguments, **options)
    except RuntimeError as error:
        raise MessageError(str(error)) from error
    assert work is not None  # async_op, and this worker is in the group
    return work


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


ALIGNED_BYTES = 128
"""What a gathered row on an accelerator is a multiple of."""

# all_gather_into_tensor has had this name since torch 2.13, which deprecates the old one
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def all_reduce_bytes(vector: Tensor, world_size: int) -> int:
    """Return what one worker sends to all-reduce ``vector`` in a ring, in bytes.

    Example:
        >>> all_reduce_bytes(torch.zeros(100), world_size=4)
        600
    """
    return 2 * (world_size - 1) * vector.numel() * vector.element_size() // world_size


def _children(place: int, world_size: int) -> int:
    """Count whom a worker passes a broadcast on to, in a binomial tree with the root at place 0."""
    levels = (world_size - 1).bit_length()
    return sum(place + (1 << level) < world_size for level in range(place.bit_length(), levels))


# ---------------------------------------------------------------------- callbacks


@dataclass(eq=False)
class Callback:
    """What torch gets to hold in place of a function: known until torch has dropped it.

    Args:
        function: gets the future that has ended; None once it was called.
    """

    function: Callable[[AnyFuture], Any] | None
    _given: bool = field(default=False, init=False)

    def attach(self, future: AnyFuture) -> AnyFuture:
        """Give it to torch; returns a future of what the function returns."""
        try:
            return future.then(self)
        finally:
            self._given = True

    def __call__(self, done: AnyFuture) -> Any:
        """Call the function, once."""
        assert self.function is not None
        try:
            return self.function(done)
        finally:
            self.function = None  # so that little is left to be destroyed with this

    @property
    def pending(self) -> bool:
        """Whether torch has yet to call it, or calls it at present."""
        return self._given and self.function is not None


Held = weakref.ref[Callback]
_HELD: set[Held] = set()  # a reference leaves it when torch drops the callback
os.register_at_fork(after_in_child=_HELD.clear)  # the threads that would drop them are not there


def held(callback: Callback) -> Held:
    """Return a reference to a callback that leaves the register, if it is there, when torch drops the callback."""
    return weakref.ref(callback, _HELD.discard)  # in C: no other thread runs between this and the end of the callback


def expect(reference: Held) -> None:
    """Let ``settle`` wait for a callback that will be called for sure."""
    _HELD.add(reference)


def then(future: AnyFuture, function: Callable[[AnyFuture], Result]) -> torch.futures.Future[Result]:
    """Call ``function`` with the future when that has ended; the only way to give torch a callback.

    Args:
        future: of a message that is under way, or of what follows one.
        function: must not send or wait.

    Returns:
        A future of what ``function`` returns, or of the error that it raises.
    """
    callback = Callback(function)
    _HELD.add(weakref.ref(callback, _HELD.discard))
    return callback.attach(future)


def quiet() -> bool:
    """Tell whether no callback is to be called any more."""
    return not any((callback := reference()) is not None and callback.pending for reference in list(_HELD))


def settle(until: float) -> None:
    """Wait until torch has called and dropped every callback, with Python's lock free for those who do it.

    Args:
        until: time of the monotonic clock at which what is left is given up.
    """
    while not quiet() and time.monotonic() < until:
        time.sleep(0.001)
    until = min(until, time.monotonic() + _KEPT_S)
    while _HELD and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(_DROPS_S)
