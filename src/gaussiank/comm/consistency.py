"""Workers that train together must be configured alike, and go on or stop together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch.distributed as dist

from .attendance import await_all

T = TypeVar("T")
_KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (ValueError, FileNotFoundError, OSError)}


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
    return [value for value, _, _ in outcomes]  # type: ignore[misc]  # no worker has failed


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
