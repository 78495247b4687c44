"""Callbacks of ours that torch holds: the process must not end before it has dropped them all.

A backend calls them on threads of its own and drops them there, and needs Python's lock for both. A thread that asks
for the lock while Python finalizes is ended in the middle of a destructor, and the process aborts, although all its
work is done. So each callback is given to torch by ``then``, and the end of the process waits for ``settle``.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
Future = torch.futures.Future[Any]

_KEPT_S = 0.2  # for callbacks that have been called: the traceback of an error can hold one to the very end
_DROPS_S = 0.02  # without Python's lock, for what a backend still drops of a message: tensors, in microseconds


class Callback:
    """What torch gets to hold in place of a function: known until torch has dropped it.

    Args:
        function: gets the future that has ended.
    """

    __slots__ = ("__weakref__", "_function", "_given")

    def __init__(self, function: Callable[[Future], Any]) -> None:
        self._function: Callable[[Future], Any] | None = function
        self._given = False

    def attach(self, future: Future) -> torch.futures.Future[Any]:
        """Give it to torch; returns a future of what the function returns."""
        try:
            return future.then(self)
        finally:
            self._given = True

    def __call__(self, done: Future) -> Any:
        """Call the function, once."""
        assert self._function is not None
        try:
            return self._function(done)
        finally:
            self._function = None  # so that little is left to be destroyed with this

    @property
    def pending(self) -> bool:
        """Whether torch has yet to call it, or calls it at present."""
        return self._given and self._function is not None


Held = weakref.ref[Callback]
_HELD: set[Held] = set()
os.register_at_fork(after_in_child=_HELD.clear)  # the threads that would drop them are not there


def held(callback: Callback) -> Held:
    """Return a reference that leaves the register, if it is there, when torch drops the callback."""
    return weakref.ref(callback, _HELD.discard)  # in C: no other thread runs between this and the end of the callback


def expect(reference: Held) -> None:
    """Let ``settle`` wait for a callback that will be called for sure."""
    _HELD.add(reference)


def then(future: Future, function: Callable[[Future], Result]) -> torch.futures.Future[Result]:
    """Call ``function`` with the future when that has ended; the only way to give torch a callback.

    Args:
        future: of a message that is under way, or of what follows one.
        function: must not send or wait.

    Returns:
        A future of what ``function`` returns, or of the error that it raises.
    """
    callback = Callback(function)
    expect(held(callback))
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
