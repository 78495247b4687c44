"""After a lost message: which workers have said that they lost one too, and which are silent."""

from __future__ import annotations

import datetime

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore  # torch.distributed shows it at run time only
from torch.distributed.distributed_c10d import _get_default_store  # torch has no public name for it

_GRACE_S = 2.0  # those who wait for the same worker give up at nearly the same time


def silent_ranks(group: dist.ProcessGroup) -> list[int]:
    """Say that this worker lost a message of a group, and find out who does not say so.

    Workers that are alive and wait for one that is not all lose a message; the one that they wait for does not. It is
    a hint, not a proof: a worker that is slow to give up is silent too.

    Args:
        group: the group of the message, which is of no more use.

    Returns:
        Ranks in the group that stay silent for two seconds; none when nobody can be asked, because the store is gone
        with the worker that held it.
    """
    try:
        store = PrefixStore(f"gaussiank/lost/{group.group_name}", _get_default_store())
        store.set(str(dist.get_rank(group)), "lost")
        keys = [str(rank) for rank in range(dist.get_world_size(group))]
        try:
            store.wait(keys, datetime.timedelta(seconds=_GRACE_S))
        except Exception:  # noqa: BLE001  each kind of store has its own when the time is over
            return [int(key) for key in keys if not store.check([key])]
    except Exception:  # noqa: BLE001  nothing that goes wrong here may hide the error that led here
        return []
    return []
