"""Before the first message: wait for every worker to call, and say who does not, where a collective would only hang."""

from __future__ import annotations

import time
import warnings
import weakref
import zlib
from collections import Counter

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore  # torch.distributed shows it at run time only
from torch.distributed.distributed_c10d import _get_default_store  # torch has no public name for it

_DEFAULT_TIMEOUT_S = 1800.0  # of torch, for a backend that does not show its own
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1e-3, 0.25  # between two looks into the store

# how often the workers of each group have been waited for, forgotten with the default group and its store
_CALLS: weakref.WeakKeyDictionary[dist.ProcessGroup, Counter[tuple[int, ...]]] = weakref.WeakKeyDictionary()


def group_timeout_s(group: dist.ProcessGroup | None = None) -> float:
    """Return the seconds after which a message of a process group fails, as it was made.

    Args:
        group: process group, or None for the default one.
    """
    found = group or dist.group.WORLD
    assert found is not None  # a process group exists
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
