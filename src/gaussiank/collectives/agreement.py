"""Workers that train together must be configured alike: checked once, before the first gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist


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
