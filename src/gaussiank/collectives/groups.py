"""Process groups of our own: nobody else's messages can get between ours, and they have our time-out."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import torch.distributed as dist


def new_group(ranks: Sequence[int], parent: dist.ProcessGroup | None, timeout_s: float) -> dist.ProcessGroup:
    """Make a group of global ranks with the backend of ``parent``; all its workers, and only they, must call it."""
    backend = None if parent in (None, dist.group.WORLD) else dist.get_backend(parent)
    made: dist.ProcessGroup | None = dist.new_group(
        list(ranks), timeout=datetime.timedelta(seconds=timeout_s), backend=backend, use_local_synchronization=True
    )
    assert made is not None  # this worker is among the ranks
    return made
