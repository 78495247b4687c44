"""Messages between the workers of a group: groups, counted messages, their order, and who is missing; no gradients."""

from .communicator import AnyFuture, Communicator, Work, ring_bytes, then
from .consistency import await_all, group_timeout_s, require_agreement, together
from .executor import Done, Executor, Promise, executor_of
from .groups import Groups, groups_of, require_backend

__all__ = [
    "AnyFuture",
    "Communicator",
    "Done",
    "Executor",
    "Groups",
    "Promise",
    "Work",
    "await_all",
    "executor_of",
    "group_timeout_s",
    "groups_of",
    "require_agreement",
    "require_backend",
    "ring_bytes",
    "then",
    "together",
]
