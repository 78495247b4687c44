"""Who starts messages and who waits for them, so that every worker does both in the same order.

A message must never be started or awaited inside a future's callback: callbacks run when messages happen to arrive, so
workers would start them in different orders, and on Gloo they hang or end. Therefore an exchange of one message is
started by the caller and finished in a callback that only computes; one of several messages is carried by a thread that
alone uses a process group of its own.

Why a thread, and not all second messages at the end of backward: both keep the order, but the thread lets every phase
overlap with backward, may wait for sizes without stopping it, and needs no last bucket to be told from the others.

On an accelerator there is neither a thread nor a group of ours. NCCL asks for one order of all messages of a process,
over all its communicators, and two threads have none: so the caller carries its exchanges itself, over the model's own
group, and each of their messages begins on the device when the one before has ended there.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .communicator import AnyFuture, Callback, MessageError, Work, expect, held, known_group, reduction, settle, then
from .consistency import SilentRanks
from .groups import Groups, groups_of

Done = torch.futures.Future[Tensor]
Answer = TypeVar("Answer")

_MARGIN_S = 5.0  # that a message may fail after its time-out


class Messages(Protocol):
    """Messages of one exchange, each of which may depend on what the one before has brought.

    Attributes:
        work: the message under way.
    """

    work: Work[Any]

    def advance(self) -> bool:
        """Wait for the message under way and send the next one; False when there was none left to send."""


class Executor:
    """Carry the exchanges of one process group; use ``executor_of``, which makes one for each group.

    Args:
        groups: one for messages that callers start themselves, and one for those that the thread starts; none where
            callers start all, over ``group``.
        group: of the model.
        timeout_s: seconds after which a message fails that a worker did not answer.

    Attributes:
        group: for messages that callers start.
        in_callers_thread: whether they carry exchanges of several messages too.
    """

    def __init__(self, groups: Groups, group: dist.ProcessGroup, timeout_s: float) -> None:
        self._groups = groups
        self.group, self._ordered_group = groups.members or (group, group)
        self.in_callers_thread = not groups.members
        self._carrier = _Carrier(group, one_at_a_time=True) if self.in_callers_thread else None
        self._opened = False
        self._stream: torch.cuda.Stream | None = None
        self._rank, self._world_size = self.group.rank(), self.group.size()
        self._summing = reduction(dist.ReduceOp.SUM)
        self._timeout_s = timeout_s
        _longest_s[0] = max(timeout_s, *_longest_s)
        self._silent_ranks = SilentRanks(self.group)
        self._thread: _Thread | None = None

    def submit(
        self,
        label: Callable[[], str],
        start: Callable[[dist.ProcessGroup], Messages],
        finish: Callable[[Any], Tensor],
        *,
        multi_phase: bool,
        device: torch.device,
    ) -> Done:
        """Start an exchange, or hand it to the thread.

        Args:
            label: returns the name of the bucket, for errors.
            start: sends the first message over the group that it is given, and returns the exchange.
            finish: called with the exchange when its last message has arrived; must not send or wait.
            multi_phase: whether the thread has to carry it.
            device: where its tensors are.

        Returns:
            A future of what ``finish`` returns. An error of the communication names this worker's rank and the label.
        """
        task = _Task(self, label, start, finish, time.perf_counter())
        if not multi_phase:
            try:
                task.exchange = start(self.group)
            except RuntimeError as error:
                raise self.failed(error, label, task.began) from error
            return then(task.exchange.work.works[0].get_future(), task.arrived)
        if self._carrier is not None:
            self._open(device)
        queued = _Queued(task, self._stream_behind(device), Promise(device))
        if self._carrier is not None:
            self._carrier.take(queued)
        else:
            if self._thread is None:
                self._thread = _Thread(self._ordered_group)
                self._thread.start()
                weakref.finalize(self, self._thread.stop)
            self._thread.tasks.put(queued)
        return queued.promise.future

    def _open(self, device: torch.device) -> None:
        """Let a message of all workers be the group's first: NCCL leaves one between some of them undefined there."""
        if not self._opened:
            self._opened = True
            self.group.allreduce([torch.zeros(1, device=device)], self._summing).wait()

    def _stream_behind(self, device: torch.device) -> torch.cuda.Stream | None:
        """Return the stream that exchanges of several messages compute on, behind what the caller has queued."""
        if device.type != "cuda":
            return None
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        return self._stream

    def flush(self) -> None:
        """Say that no exchange follows for now, so that those of several messages can end."""
        if self._carrier is not None:
            self._carrier.take(_FLUSH)
        elif self._thread is not None:
            self._thread.tasks.put(_FLUSH)

    def average(
        self,
        label: Callable[[], str],
        vector: Tensor,
        arrived: Callable[[float], object],
        dtype: torch.dtype | None = None,
    ) -> Done:
        """Start the mean of a dense vector, in place, with little more Python than DDP's own all-reduce hook has.

        Args:
            label: as for ``submit``.
            vector: ``[numel]`` of a dtype that the backend reduces; divided by the world size first, as DDP does.
            arrived: called, with the time at which the message left, once the mean is there; must not send or wait.
            dtype: what it is rounded to on its way and summed up in, None for its own.

        Returns:
            A future of ``vector``, with errors as those of ``submit``.
        """
        mean = _Average(self, label, vector, vector, arrived, time.perf_counter())
        vector.div_(self._world_size)
        if dtype is not None:
            mean.sent = vector.to(dtype)
        try:
            work = self.group.allreduce([mean.sent], self._summing)
        except RuntimeError as error:  # what backends raise
            raise self.lost(error, label, mean.began) from error
        return then(work.get_future(), mean.summed)

    def run_sync(self, question: Callable[[dist.ProcessGroup], Answer], label: str) -> Answer:
        """Let the caller send and wait at once, while nothing else is under way; errors name what was lost."""
        began = time.perf_counter()
        try:
            return question(self.group)
        except RuntimeError as error:
            raise self.failed(error, lambda: label, began) from error

    def failed(self, error: RuntimeError, label: Callable[[], str], began: float) -> RuntimeError:
        """Tell what the others have to do with from what is wrong here."""
        if isinstance(error, MessageError):
            return self.lost(error, label, began)
        return RuntimeError(
            f"rank {self._rank} could not exchange {label()}: {error}. The error is this worker's own: the others wait "
            "for it, and tell of a lost bucket."
        )

    def lost(self, error: RuntimeError, label: Callable[[], str], began: float) -> RuntimeError:
        """Return what is raised for a message that was not answered, with the ranks that are silent."""
        waited_s = time.perf_counter() - began
        silent = "" if _ends else ", ".join(map(str, self._silent_ranks.find()))
        return RuntimeError(
            f"rank {self._rank} lost {label()} after {waited_s:.1f} s: {error}. "
            + (f"Nothing was heard from rank {silent}. " if silent else "")
            + "A worker has ended, raised, or stands still: look for the first error among all workers. Set "
            f"timeout_s above {self._timeout_s:g} if one may be busy with something else for longer."
        )


@dataclass(eq=False)
class _Task:
    """One exchange: how it starts and ends, and what its errors name; torch's callback holds all of it until then."""

    executor: Executor
    label: Callable[[], str]
    start: Callable[[dist.ProcessGroup], Messages]
    finish: Callable[[Any], Tensor]
    began: float
    exchange: Messages = field(init=False)

    def arrived(self, done: AnyFuture) -> Tensor:
        """End an exchange of one message, in the callback of that message."""
        try:
            done.value()  # raises when a worker is gone; without it, memory that never arrived would be read
        except RuntimeError as error:
            raise self.executor.lost(error, self.label, self.began) from error
        return self.finish(self.exchange)

    def ended(self) -> Tensor:
        """End an exchange of several messages, in the thread."""
        return self.finish(self.exchange)


@dataclass(eq=False)
class _Average:
    """One dense vector on its way; ``sent`` is itself, or what it is rounded to."""

    executor: Executor
    label: Callable[[], str]
    vector: Tensor
    sent: Tensor
    arrived: Callable[[float], object]
    began: float

    def summed(self, done: AnyFuture) -> Tensor:
        """Round back, and tell that it is there."""
        try:
            done.value()
        except RuntimeError as error:
            raise self.executor.lost(error, self.label, self.began) from error
        if self.sent is not self.vector:
            self.vector.copy_(self.sent)
            if self.sent.is_cuda:  # the copy runs on the callback's stream, and nobody holds it any longer
                self.sent.record_stream(torch.cuda.current_stream(self.sent.device))
        self.arrived(self.began)
        return self.vector


_EXECUTORS: weakref.WeakValueDictionary[str, Executor] = weakref.WeakValueDictionary()  # by the name of their groups


def executor_of(parent: dist.ProcessGroup | None, timeout_s: float, device: torch.device | None = None) -> Executor:
    """Return the executor of a process group: that of other models in use, or a new one; all its workers must call it.

    Models that share a group share its executor, because their messages must have one order too.

    Args:
        parent: process group, or None for the default one. On a CPU no message of an exchange goes over it.
        timeout_s: seconds after which a message fails that a worker did not answer.
        device: of what is sent, None for the CPU.
    """
    ranks = dist.get_process_group_ranks(parent)
    parts = (ranks, ranks) if device is None or device.type == "cpu" else ()
    groups = groups_of(parent, "engine", parts, timeout_s)
    executor = _EXECUTORS.get(groups.name)
    if executor is None:
        executor = _EXECUTORS[groups.name] = Executor(groups, known_group(parent), timeout_s)
    return executor


class Promise:
    """A future, and the way to fulfil it: by a tensor or, otherwise than torch's own, by an error.

    Torch carries an error on, to C++ too, only when a callback raises it; ``set_exception`` wraps it in a result.

    Args:
        device: where the tensor will be.
    """

    def __init__(self, device: torch.device) -> None:
        self._error: Exception | None = None
        self._ended: torch.futures.Future[Tensor | None]
        self._ended = torch.futures.Future(devices=[device] if device.type == "cuda" else None)
        callback = Callback(self._result)
        self._held = held(callback)
        self.future = cast(Done, callback.attach(self._ended))

    def set_result(self, tensor: Tensor) -> None:
        """Fulfil the future."""
        self._fulfil(tensor)

    def set_exception(self, error: Exception) -> None:
        """Make whoever reads the future get an error, if it is not fulfilled yet."""
        if not self._ended.done():
            self._error = error
            self._fulfil(None)

    def set_from(self, work: Callable[[], Tensor]) -> None:
        """Fulfil the future by what ``work`` returns, or by the error that it raises."""
        try:
            self.set_result(work())
        except Exception as error:  # noqa: BLE001  of any kind: whoever reads the future must get it, or waits for ever
            self.set_exception(error)

    def _fulfil(self, tensor: Tensor | None) -> None:
        expect(self._held)  # not before: one that is never fulfilled holds its callback for ever
        self._ended.set_result(tensor)

    def _result(self, ended: torch.futures.Future[Tensor | None]) -> Tensor | None:
        if self._error is not None:
            raise self._error
        return ended.value()


@dataclass(eq=False)
class _Queued:
    """A task that is carried, and the promise that its end fulfils."""

    task: _Task
    stream: torch.cuda.Stream | None
    promise: Promise

    def step(self, group: dist.ProcessGroup, *, first: bool, behind: _Queued | None) -> bool:
        """Send the first message, or move on by one, behind that of another; False when the exchange has ended."""
        task = self.task
        with torch.cuda.stream(self.stream):  # None changes nothing
            try:
                if behind is not None:
                    behind.task.exchange.work.wait()  # on NCCL the stream waits, not this thread
                if first:
                    task.exchange = task.start(group)
                    return True
                if task.exchange.advance():
                    return True
            except RuntimeError as error:
                raise task.executor.failed(error, task.label, task.began) from error
            self.promise.set_from(task.ended)  # an error in it does not concern the next exchange
        return False


_FLUSH, _STOP = object(), object()


class _Carrier:
    """Carry exchanges of several messages, in one order.

    The order, which must be the same on all workers, follows from the order of tasks and flushes alone:

    1. A task sends its own first message.
    2. Every exchange in flight waits for its message and sends the next one, in the order in which they began; those
       that have none left to send end. So the messages of several exchanges overlap, one of each at a time.
    3. At a flush that is repeated until none is in flight.

    After the first lost message no other can be right, so that all exchanges fail with it, in flight and to come.

    Args:
        group: what they send over.
        one_at_a_time: let each message begin when the one before has ended: of two groups they would run at once.
    """

    def __init__(self, group: dist.ProcessGroup, *, one_at_a_time: bool) -> None:
        self._group, self._one_at_a_time = group, one_at_a_time
        self._flying: list[_Queued] = []
        self._latest: _Queued | None = None  # whose message is the last one
        self._broken: Exception | None = None

    @torch.no_grad()
    def take(self, task: _Queued | object) -> None:
        """Take a task, or end what is in flight at a flush."""
        try:
            if self._broken is not None:
                raise self._broken
            if isinstance(task, _Queued):
                self._step(task, first=True)
            self._move_on()
            if isinstance(task, _Queued):
                self._flying.append(task)
            while task is _FLUSH and self._flying:
                self._move_on()
            if not self._flying:
                self._latest = None
        except Exception as error:  # noqa: BLE001  of any kind: else every reader would wait for ever
            self._broken = error
            for one in [*self._flying, task]:
                if isinstance(one, _Queued):
                    one.promise.set_exception(error)
            self._flying = []

    def _move_on(self) -> None:
        """Move each on by one message, and keep those that have not ended."""
        self._flying = [one for one in self._flying if self._step(one, first=False)]

    def _step(self, task: _Queued, *, first: bool) -> bool:
        behind, self._latest = self._latest, task if self._one_at_a_time else None
        return task.step(self._group, first=first, behind=behind)


class _Thread(threading.Thread):
    """Carry exchanges until told to stop.

    Args:
        group: nobody else sends over it.

    Attributes:
        tasks: what to carry, or when to end what is in flight.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(name="gaussiank exchange", daemon=True)
        self.tasks: queue.SimpleQueue[_Queued | object] = queue.SimpleQueue()
        self._carrier = _Carrier(group, one_at_a_time=False)

    def stop(self) -> None:
        """Let it end when it has come so far."""
        self.tasks.put(_STOP)

    def run(self) -> None:
        """Carry."""
        while (task := self.tasks.get()) is not _STOP:
            self._carrier.take(task)


_longest_s = [0.0]  # time-out of any message
_ends: list[bool] = []  # one entry when the process ends


@atexit.register
def _end() -> None:
    """Stop the executors, and wait until nothing of ours is left with a backend: it may take until a message fails."""
    _ends.append(True)
    until = time.monotonic() + _longest_s[0] + _MARGIN_S
    executors = [one for one in threading.enumerate() if isinstance(one, _Thread)]
    for one in executors:
        one.stop()
    for one in executors:
        one.join(until - time.monotonic())
    if _longest_s[0]:
        settle(until)
