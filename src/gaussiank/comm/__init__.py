"""Messages between the workers of a group: groups, counted messages, their order, and who is missing; no gradients."""

import warnings
from typing import Any

from .communicator import ALIGNED_BYTES, AnyFuture, Communicator, Work, all_reduce_bytes, then
from .consistency import await_all, group_timeout_s, require_agreement, together
from .executor import Done, Executor, Promise, executor_of
from .groups import Groups, groups_of, require_backend

__all__ = [
    "ALIGNED_BYTES",
    "AnyFuture",
    "Communicator",
    "Done",
    "Executor",
    "Groups",
    "Promise",
    "Work",
    "all_reduce_bytes",
    "await_all",
    "executor_of",
    "group_timeout_s",
    "groups_of",
    "require_agreement",
    "require_backend",
    "then",
    "together",
]


def __getattr__(name: str) -> Any:
    if name != "ring_bytes":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("comm.ring_bytes is called all_reduce_bytes. Use that name.", DeprecationWarning, stacklevel=2)
    return all_reduce_bytes
