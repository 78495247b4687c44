"""After a lost message: which workers have said that they lost one too, and which are silent."""

from __future__ import annotations

import contextlib
import datetime
import threading

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore  # torch.distributed shows it at run time only
from torch.distributed.distributed_c10d import _get_default_store  # torch has no public name for it

_GRACE_S = 2.0  # those who wait for the same worker give up at nearly the same time


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

    def silent(self) -> list[int]:
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
