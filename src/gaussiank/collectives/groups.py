"""Process groups of our own: nobody else's messages can get between ours, and they have our time-out."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import torch.distributed as dist

_HELD: list[dist.ProcessGroup] = []
"""Every group that was made, held to the end of the process.

A callback of a message holds its group, and dies on one of the group's own threads, perhaps long after the message. If
it were the last to let go, that thread would destroy the group, wait for itself to end, and abort the process.
"""


def new_group(ranks: Sequence[int], parent: dist.ProcessGroup | None, timeout_s: float) -> dist.ProcessGroup:
    """Make a group of global ranks with the backend of ``parent``; all its workers, and only they, must call it."""
    backend = None if parent in (None, dist.group.WORLD) else dist.get_backend(parent)
    made: dist.ProcessGroup | None = dist.new_group(
        list(ranks), timeout=datetime.timedelta(seconds=timeout_s), backend=backend, use_local_synchronization=True
    )
    assert made is not None  # this worker is among the ranks
    _HELD.append(made)
    return made
