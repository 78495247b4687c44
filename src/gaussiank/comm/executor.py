"""Who starts messages and who waits for them, so that every worker does both in the same order.

A message must never be started or awaited inside a future's callback: callbacks run when messages happen to arrive, so
workers would start them in different orders, and on Gloo they hang or end. Therefore an exchange of one message is
started by the caller and finished in a callback that only computes; one of several messages is carried by a thread that
alone uses a process group of its own.

Why a thread, and not all second messages at the end of backward: both keep the order, but the thread lets every phase
overlap with backward, may wait for sizes without stopping it, and needs no last bucket to be told from the others.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .callbacks import Callback, expect, held, settle, then
from .communicator import AnyFuture, MessageError, reduction
from .failures import SilentRanks
from .groups import Groups, groups_of

if TYPE_CHECKING:
    from gaussiank.collectives import Exchange

    Start = Callable[[dist.ProcessGroup], Exchange]
    Finish = Callable[[Exchange], Tensor]

Done = torch.futures.Future[Tensor]
Answer = TypeVar("Answer")

_MARGIN_S = 5.0  # that a message may fail after its time-out


class Executor:
    """Carry the exchanges of one process group; use ``executor_of``, which makes one for each group.

    An exchange of several messages moves on by one of them whenever the next exchange begins, and to its end at
    ``flush``. So several are in flight at a time, and the order of all messages follows from the order of ``submit``
    and ``flush`` alone, never from the clock.

    Args:
        groups: one for messages that callers start themselves, and one for those that the executor starts.
        timeout_s: seconds after which a message fails that a worker did not answer.
    """

    def __init__(self, groups: Groups, timeout_s: float) -> None:
        self._groups = groups
        self.group, self._ordered_group = groups.members
        self._rank, self._world_size = self.group.rank(), self.group.size()
        self._summing = reduction(dist.ReduceOp.SUM)
        self._timeout_s = timeout_s
        _longest_s[0] = max(timeout_s, *_longest_s)
        self._silent_ranks = SilentRanks(self.group)
        self._thread: _Thread | None = None

    def submit(
        self, label: Callable[[], str], start: Start, finish: Finish, *, multi_phase: bool, device: torch.device
    ) -> Done:
        """Start an exchange, or put it in line.

        Args:
            label: returns the name of the bucket, for errors.
            start: sends the first message over the group that it is given.
            finish: called when the last message has arrived; must not send or wait.
            multi_phase: whether the thread has to carry it.
            device: where its tensors are.

        Returns:
            A future of what ``finish`` returns. An error of the communication names this worker's rank and the label.
        """
        began = time.perf_counter()
        if not multi_phase:
            try:
                exchange = start(self.group)
            except RuntimeError as error:
                raise self._failed(error, label, began) from error

            def arrived(done: AnyFuture) -> Tensor:
                self._require_arrived(done, label, began)
                return finish(exchange)

            return then(exchange.future, arrived)
        if self._thread is None:
            self._thread = _Thread(self._ordered_group)
            self._thread.start()
            weakref.finalize(self, self._thread.stop)
        task = _Task(lambda error: self._failed(error, label, began), start, finish, device)
        self._thread.tasks.put(task)
        return task.promise.future

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
        began = time.perf_counter()
        sent = vector.div_(self._world_size)
        if dtype is not None:
            sent = sent.to(dtype)
        try:
            work = self.group.allreduce([sent], self._summing)
        except RuntimeError as error:  # what backends raise
            raise self._lost(error, label, began) from error

        def ended(done: AnyFuture) -> Tensor:
            self._require_arrived(done, label, began)
            if sent is not vector:
                vector.copy_(sent)
                if sent.is_cuda:  # the copy runs on the callback's stream, and nobody holds it any longer
                    sent.record_stream(torch.cuda.current_stream(sent.device))
            arrived(began)
            return vector

        return then(work.get_future(), ended)

    def run_sync(self, question: Callable[[dist.ProcessGroup], Answer], label: str) -> Answer:
        """Let the caller send and wait at once, while nothing else is under way; errors name what was lost."""
        began = time.perf_counter()
        try:
            return question(self.group)
        except RuntimeError as error:
            raise self._failed(error, lambda: label, began) from error

    def _require_arrived(self, done: AnyFuture, label: Callable[[], str], began: float) -> None:
        try:
            done.value()  # raises when a worker is gone; without it, memory that never arrived would be read
        except RuntimeError as error:
            raise self._lost(error, label, began) from error

    def _failed(self, error: RuntimeError, label: Callable[[], str], began: float) -> RuntimeError:
        """Tell what the others have to do with from what is wrong here."""
        if isinstance(error, MessageError):
            return self._lost(error, label, began)
        return RuntimeError(
            f"rank {self._rank} could not exchange {label()}: {error}. The error is this worker's own: the others wait "
            "for it, and tell of a lost bucket."
        )

    def _lost(self, error: RuntimeError, label: Callable[[], str], began: float) -> RuntimeError:
        waited_s = time.perf_counter() - began
        silent = "" if _ends else ", ".join(map(str, self._silent_ranks.silent()))
        return RuntimeError(
            f"rank {self._rank} lost {label()} after {waited_s:.1f} s: {error}. "
            + (f"Nothing was heard from rank {silent}. " if silent else "")
            + "A worker has ended, raised, or stands still: look for the first error among all workers. Set "
            f"timeout_s above {self._timeout_s:g} if one may be busy with something else for longer."
        )

    def flush(self) -> None:
        """Say that no exchange follows for now, so that those in line can end."""
        if self._thread is not None:
            self._thread.tasks.put(_FLUSH)


_EXECUTORS: weakref.WeakValueDictionary[str, Executor] = weakref.WeakValueDictionary()  # by the name of their groups


def executor_of(parent: dist.ProcessGroup | None, timeout_s: float) -> Executor:
    """Return the executor of a process group: that of other models in use, or a new one; all its workers must call it.

    Models that share a group share its executor, because their messages must have one order too. No message of an
    exchange goes over ``parent``.
    """
    ranks = dist.get_process_group_ranks(parent)
    groups = groups_of(parent, "engine", (ranks, ranks), timeout_s)
    executor = _EXECUTORS.get(groups.name)
    if executor is None:
        executor = _EXECUTORS[groups.name] = Executor(groups, timeout_s)
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


class _Stream:
    """Where an exchange computes: a stream of its own on CUDA, which waits for what the caller has queued."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._stream: torch.cuda.Stream | None = None
        if self._device is not None:
            self._stream = torch.cuda.Stream(self._device)
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        if self._stream is None:
            yield
        else:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                yield


class _Task:
    """An exchange in line, and the promise that its end fulfils."""

    def __init__(
        self,
        failed: Callable[[RuntimeError], RuntimeError],
        start: Start,
        finish: Finish,
        device: torch.device,
    ) -> None:
        self._failed, self._start, self._finish, self._stream = failed, start, finish, _Stream(device)
        self._exchange: Exchange | None = None
        self.promise = Promise(device)

    def begin(self, group: dist.ProcessGroup) -> None:
        with self._stream.entered():
            try:
                self._exchange = self._start(group)
            except RuntimeError as error:
                raise self._failed(error) from error

    def step(self) -> bool:
        """Move on by one message; False when the exchange has ended."""
        assert self._exchange is not None  # begun
        with self._stream.entered():
            try:
                if self._exchange.advance():
                    return True
            except RuntimeError as error:
                raise self._failed(error) from error
            exchange = self._exchange
            self.promise.set_from(lambda: self._finish(exchange))  # an error in it does not concern the next exchange
        return False


_FLUSH, _STOP = object(), object()


class _Thread(threading.Thread):
    """Carry exchanges until told to stop; after the first lost message no other can be right, so all fail with it.

    Args:
        group: nobody else sends over it.

    Attributes:
        tasks: what to carry, or when to end what is in flight.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(name="gaussiank exchange", daemon=True)
        self.tasks: queue.SimpleQueue[_Task | object] = queue.SimpleQueue()
        self._group = group

    def stop(self) -> None:
        """Let it end when it has come so far."""
        self.tasks.put(_STOP)

    @torch.no_grad()
    def run(self) -> None:
        """Carry."""
        flying: list[_Task] = []
        broken: Exception | None = None
        while (task := self.tasks.get()) is not _STOP:
            try:
                if broken is not None:
                    raise broken
                if isinstance(task, _Task):
                    task.begin(self._group)
                flying = [one for one in flying if one.step()]
                if isinstance(task, _Task):
                    flying.append(task)
                while task is _FLUSH and flying:
                    flying = [one for one in flying if one.step()]
            except Exception as error:  # noqa: BLE001  of any kind: without this thread every reader would wait for ever
                broken = error
                for one in [*flying, task]:
                    if isinstance(one, _Task):
                        one.promise.set_exception(error)
                flying = []


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
