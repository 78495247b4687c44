"""Workers that train together: all must be there, configured alike, and go on or stop together; and who is silent."""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
import warnings
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore  # torch.distributed shows it at run time only
from torch.distributed.distributed_c10d import _get_default_store  # torch has no public name for it

from .communicator import known_group

T = TypeVar("T")
_KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (ValueError, FileNotFoundError, OSError)}
_DEFAULT_TIMEOUT_S = 1800.0  # of torch, for a backend that does not show its own
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1e-3, 0.25  # between two looks into the store
_GRACE_S = 2.0  # those who wait for the same worker give up at nearly the same time

# how often the workers of each group have been waited for, forgotten with the default group and its store
_CALLS: weakref.WeakKeyDictionary[dist.ProcessGroup, Counter[tuple[int, ...]]] = weakref.WeakKeyDictionary()


def group_timeout_s(group: dist.ProcessGroup | None = None) -> float:
    """Return the seconds after which a message of a process group fails, as it was made.

    Args:
        group: process group, or None for the default one.
    """
    found = known_group(group)
    for device in found._device_types:
        options = getattr(found._get_backend(device), "options", None)
        if (timeout := getattr(options, "_timeout", None)) is not None:
            return float(timeout.total_seconds())
    return _DEFAULT_TIMEOUT_S


def await_all(
    group: dist.ProcessGroup | None = None,
    *,
    what: str = "gaussiank.compress",
    patience_s: float = 60.0,
    timeout_s: float | None = None,
) -> None:
    """Wait until every worker of a group has called this as often as this one.

    Workers meet in the store, not by a message, so those who wait know who is missing. Call it in the same order as
    the other workers of the group.

    Args:
        group: process group, or None for the default one.
        what: they should have called.
        patience_s: seconds after which a warning names the ranks that are missing.
        timeout_s: seconds after which an error names them, None for the group's own.

    Raises:
        RuntimeError: workers are missing when the time is over.
    """
    ranks = tuple(dist.get_process_group_ranks(group))
    world = dist.group.WORLD
    if len(ranks) == 1 or world is None:
        return
    timeout_s = group_timeout_s(group) if timeout_s is None else timeout_s
    calls = _CALLS.setdefault(world, Counter())
    name = f"{zlib.crc32(repr(ranks).encode()):x}/{calls[ranks]}"  # groups have other names on other workers
    store = PrefixStore(f"gaussiank/{what}/{name}", _get_default_store())
    if store.add(str(dist.get_rank()), 1) == 1:  # else it has called, given up, and calls again
        store.add("all", 1)
    began, pause_s, warned = time.monotonic(), _FIRST_PAUSE_S, False
    while store.add("all", 0) < len(ranks):
        waited_s = time.monotonic() - began
        if waited_s >= timeout_s:
            raise RuntimeError(
                f"{what} must be called on every worker of the group, got no call from rank {_missing(store, ranks)} "
                f"in {timeout_s:g} s. Call it on each, as often and in the same order, and look for an error there."
            )
        if waited_s >= patience_s and not warned:
            warned = True
            warnings.warn(
                f"{what} waits for rank {_missing(store, ranks)}, which has not called it after {patience_s:g} s. "
                f"Every worker of the group must. The wait ends after {timeout_s:g} s, the process group's time-out.",
                stacklevel=6,
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    calls[ranks] += 1


def _missing(store: PrefixStore, ranks: tuple[int, ...]) -> str:
    return ", ".join(str(rank) for rank in ranks if not store.add(str(rank), 0))


def together(work: Callable[[], T], group: dist.ProcessGroup | None = None, *, what: str) -> list[T]:
    """Do something on every worker: all learn what each returned, or all raise what the first that failed raised.

    Args:
        work: what to do; returns something small that can be pickled.
        group: process group, or None for the default one.
        what: the workers are doing, for the message when one of them does not.

    Returns:
        What ``work`` returned, by rank.

    Raises:
        ValueError: ``work`` raised one on some worker. The same for ``FileNotFoundError`` and ``OSError``.
        RuntimeError: it raised anything else, or a worker is missing.
    """
    if dist.get_world_size(group) == 1:
        return [work()]
    mine: tuple[T | None, str, str]
    try:
        mine = work(), "", ""
    except Exception as error:  # noqa: BLE001  whatever it is, the others must learn of it or they wait for ever
        kinds = [kind for kind, known in _KINDS.items() if isinstance(error, known)]
        mine = None, str(error) or type(error).__name__, kinds[0] if kinds else "RuntimeError"
    await_all(group, what=what)
    outcomes = [mine] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, mine, group=group)
    for rank, (_, failed, kind) in enumerate(outcomes):
        if failed:
            raise _KINDS.get(kind, RuntimeError)(f"{failed} (rank {rank})")
    return [cast(T, value) for value, _, _ in outcomes]  # no worker has failed


def require_agreement(config: Mapping[str, object], group: dist.ProcessGroup | None = None) -> None:
    """Compare ``config`` with every other worker's and raise on all of them when a field differs.

    Args:
        config: field -> value; compared by its text.
        group: process group, or None for the default one.

    Raises:
        ValueError: names the field, and the ranks with their values.
    """
    own = {field: str(value) for field, value in config.items()}
    gathered: list[dict[str, str]] = [own] * dist.get_world_size(group)
    dist.all_gather_object(gathered, own, group=group)
    first = gathered[0]
    for rank, other in enumerate(gathered):
        for field in sorted({*first, *other}):
            if first.get(field) != other.get(field):
                raise ValueError(
                    f"{field} must be the same on every worker, got {first.get(field)!r} on rank 0 and "
                    f"{other.get(field)!r} on rank {rank}. Start all workers with the same settings."
                )


class SilentRanks:
    """Ask the workers of a group, once, who of them has lost a message.

    Workers that are alive and wait for one that is not all lose a message; the one that they wait for does not. It is
    a hint, not a proof: a worker that is slow to give up is silent too.

    Args:
        group: the group whose messages are lost.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._silent: list[int] | None = None
        self._asking = threading.Lock()  # several messages may be lost at once, each in a thread of the backend

    def find(self) -> list[int]:
        """Say that this worker has lost a message; returns the ranks that do not say so within two seconds.

        None are returned when nobody can be asked, because the store is gone with the worker that held it, or stands
        still with it: then there is no answer at all, and after six seconds none is waited for.
        """
        with self._asking:
            if self._silent is None:
                answers: list[list[int]] = []
                thread = threading.Thread(target=self._answer, args=(answers,), name="gaussiank roll call", daemon=True)
                thread.start()
                thread.join(3 * _GRACE_S)
                self._silent = answers[0] if answers else []
            return self._silent

    def _answer(self, answers: list[list[int]]) -> None:
        # nothing that goes wrong here may hide the error that led here
        with contextlib.suppress(Exception):
            answers.append(self._ask())

    def _ask(self) -> list[int]:
        store = PrefixStore(f"gaussiank/lost/{self._group.group_name}", _get_default_store())
        store.set(str(dist.get_rank(self._group)), "lost")
        keys = [str(rank) for rank in range(dist.get_world_size(self._group))]
        try:
            store.wait(keys, datetime.timedelta(seconds=_GRACE_S))
        except RuntimeError:  # the time is over: of all stores, TCPStore has a kind of its own below it
            return [int(key) for key in keys if not store.check([key])]
        return []
