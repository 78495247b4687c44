"""Process groups of our own: nobody else's messages can get between ours, and they have our time-out."""

from __future__ import annotations

import contextlib
import datetime
import uuid
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store, _new_process_group_helper, _world

from .communicator import known_group, quiet
from .consistency import group_timeout_s

_Key = tuple[str, tuple[tuple[int, ...], ...], float]


class Groups:
    """Groups that are made together; use ``groups_of``. They are destroyed some time after their last holder is gone.

    Attributes:
        name: the same on every worker of the parent, and no other's.
        members: the groups.
    """

    def __init__(
        self, name: str, parts: Sequence[Sequence[int]], parent: dist.ProcessGroup | None, timeout_s: float
    ) -> None:
        self.name = name
        self.members = tuple(_made(f"{name}/{i}", ranks, parent, timeout_s) for i, ranks in enumerate(parts))
        weakref.finalize(self, _LEFT.extend, self.members).atexit = False


_KNOWN: weakref.WeakKeyDictionary[dist.ProcessGroup, weakref.WeakValueDictionary[_Key, Groups]]
_KNOWN = weakref.WeakKeyDictionary()
_LEFT: list[dist.ProcessGroup] = []
"""Groups without a holder.

Their last holder may have been a callback, which dies on a thread of the group itself: if that were to destroy the
group, it would wait for itself to end, and abort the process. So they wait here for ``groups_of``.
"""


_GLOO_AND_CUDA = (2, 11)  # of torch: earlier futures of Gloo do not tell streams that a message is over (issue 155714)


def require_backend(
    group: dist.ProcessGroup | None, devices: Iterable[torch.device], timeout_s: float | None = None
) -> torch.device:
    """Refuse a process group that cannot carry the messages of a model.

    Args:
        group: None for the default one.
        devices: of the model's parameters.
        timeout_s: that was asked for.

    Returns:
        The one device.

    Raises:
        ValueError: there are several, means would arrive before they are there, or messages have another time-out.
    """
    different = sorted(set(devices), key=str)
    if len(different) != 1:
        raise ValueError(
            f"model must have its parameters on one device, got {', '.join(map(str, different)) or 'none'}. Move them "
            "before it is wrapped."
        )
    device = different[0]
    if device.type == "cpu":
        return device
    own_s = group_timeout_s(group)
    if timeout_s not in (None, own_s):
        raise ValueError(
            f"timeout_s must be left out on {device}, got {timeout_s:g} for a process group of {own_s:g} s: messages "
            "go over that group, whose watchdog ends the process. Give init_process_group the time as timeout."
        )
    _require_futures(group, device)
    return device


def _require_futures(group: dist.ProcessGroup | None, device: torch.device) -> None:
    backends = dist.BackendConfig(dist.Backend(dist.get_backend_config(group))).get_device_backend_map()
    if backends.get(device.type) == "gloo" and _torch_release() < _GLOO_AND_CUDA:
        raise ValueError(
            f"process group must be of NCCL for parameters on {device}, got gloo with torch {torch.__version__}, whose "
            'means arrive before they are there. Use init_process_group("nccl"), or torch '
            f"{'.'.join(map(str, _GLOO_AND_CUDA))} or newer."
        )


def _torch_release() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def groups_of(parent: dist.ProcessGroup | None, what: str, parts: Sequence[Sequence[int]], timeout_s: float) -> Groups:
    """Return groups of some workers of ``parent``, those that are in use or new ones; all its workers must call it.

    Torch names a group by counters of each rank's own, which differ after another history of making groups, and then
    workers wait for each other. Here they agree on a name, so that nothing depends on what they did before.

    Args:
        parent: process group, or None for the default one; its backend is that of the groups.
        what: they are for.
        parts: global ranks of each group that this worker is in, in their order. The i-th of all workers must not
            overlap, or be the same.
        timeout_s: seconds after which a message fails.

    Raises:
        ValueError: NCCL would wait for workers outside of ``parent``.
    """
    _require_all_to_split(parent, parts)
    _free()
    key = (what, tuple(map(tuple, parts)), timeout_s)
    shared = _KNOWN.setdefault(known_group(parent), weakref.WeakValueDictionary())
    groups = shared.get(key)
    name = _agreed("" if groups is None else groups.name, parent)
    if groups is None or groups.name != name:
        groups = shared[key] = Groups(name, parts, parent, timeout_s)
    return groups


def _require_all_to_split(parent: dist.ProcessGroup | None, parts: Sequence[Sequence[int]]) -> None:
    """Refuse what would hang: NCCL splits a default group that has a device, with all of its ranks."""
    world = known_group(None)
    if parts and world.bound_device_id is not None and dist.get_world_size(parent) < world.size():
        raise ValueError(
            f"process group must be the default one for groups of its workers, got {dist.get_world_size(parent)} of "
            f"{world.size()} ranks, and the others would be waited for. Leave device_id out of init_process_group, or "
            'take collective="allgather".'
        )


def _agreed(known: str, parent: dist.ProcessGroup | None) -> str:
    """Return the name that all workers know already, or else a new one: one may have dropped what others still hold."""
    offer = known, f"gaussiank/{uuid.uuid4().hex}"
    offers = [offer] * dist.get_world_size(parent)
    if len(offers) > 1:
        dist.all_gather_object(offers, offer, group=parent)
    names = {name for name, _ in offers}
    return names.pop() if len(names) == 1 and known else offers[0][1]


def _made(name: str, ranks: Sequence[int], parent: dist.ProcessGroup | None, timeout_s: float) -> dist.ProcessGroup:
    """Make a group as ``dist.new_group`` does, which cannot be told a name."""
    group: dist.ProcessGroup
    group, _ = _new_process_group_helper(
        len(ranks),
        ranks.index(dist.get_rank()),
        list(ranks),
        dist.get_backend(parent),
        _get_default_store(),
        cast(Any, f"{name}/{min(ranks)}"),  # newer torch has a type for it
        timeout=datetime.timedelta(seconds=timeout_s),
        device_id=known_group(None).bound_device_id,
    )
    _world.pg_group_ranks[group] = {rank: place for place, rank in enumerate(ranks)}
    return group


def _free() -> None:
    """Destroy the groups without a holder; no thread of a backend ever comes here."""
    while _LEFT and quiet():
        with contextlib.suppress(ValueError):  # torch has destroyed it, together with the default group
            dist.destroy_process_group(_LEFT[-1])
        _LEFT.pop()
