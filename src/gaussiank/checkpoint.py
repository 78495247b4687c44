"""A worker's state as tensors under names of its own, for checkpoints that know tensors alone."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gaussiank.dcp_metadata import entries, load_plain
from gaussiank.reshard import reshard, sources

_SMALL = 1024  # entries; smaller tensors travel together with the values around them
_REST = "rest"
_WORKER = "gaussiank/worker-{:05d}"
_RANK = re.compile(r"gaussiank/worker-(\d{5,9})/")


class HasState(Protocol):
    """Anything with a ``state_dict``, such as a ``Compression``."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...


def pack(state: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Turn a nested state into one flat dictionary of tensors.

    Large tensors keep a name, made of their keys; everything else lies in one uint8 tensor, ``prefix/rest``.

    Args:
        state: dictionaries, lists, tensors and plain values, as ``state_dict`` returns them. Not modified.
        prefix: what every name starts with.

    Example:
        >>> packed = pack({"step": 3, "residual": {"w": torch.zeros(2000)}}, "mine")
        >>> sorted(packed)
        ['mine/residual/w', 'mine/rest']
        >>> unpack(packed, "mine")["step"]
        3
    """
    tensors: dict[str, Tensor] = {}
    file = io.BytesIO()
    torch.save(_without_tensors(state, prefix, tensors), file)
    tensors[f"{prefix}/{_REST}"] = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    return tensors


def unpack(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Undo ``pack``.

    Raises:
        ValueError: there is no state under this prefix.
    """
    key = f"{prefix}/{_REST}"
    if key not in tensors:
        raise ValueError(f"tensors must hold {key!r}, got {len(tensors)} others. Load the whole checkpoint.")
    rest = load_plain(io.BytesIO(tensors[key].numpy().tobytes()), key, "a state")
    try:
        restored: dict[str, Any] = _with_tensors(rest, tensors)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{key} must name tensors beside it, got others. Load the whole checkpoint.") from None
    return restored


def shards(compression: HasState, rank: int) -> dict[str, Tensor]:
    """Return a worker's compression state for ``torch.distributed.checkpoint.save``.

    Plain tensors under one name are taken from rank 0 alone there, without a word; therefore every name starts with the
    worker's rank.

    Args:
        compression: what ``gaussiank.compress`` returned.
        rank: this worker's.

    Returns:
        Tensors to add to the dictionary that is saved.

    Example:
        >>> class Two:
        ...     def state_dict(self):
        ...         return {"hints": {"w": torch.tensor(0.5)}}
        >>> list(shards(Two(), rank=1))
        ['gaussiank/worker-00001/rest']
    """
    return pack(compression.state_dict(), _WORKER.format(rank))


def load_shards(checkpoint: str | Path, rank: int, world_size: int) -> dict[str, Any]:
    """Read what ``shards`` gave to ``torch.distributed.checkpoint.save``, for this worker.

    Saved by another number of workers, the residuals are shared out anew by ``gaussiank.reshard``. Nothing in the files
    is run, whoever wrote them: torch's own reader would.

    Args:
        checkpoint: folder that was saved to.
        rank: this worker's.
        world_size: number of workers now.

    Returns:
        State for ``Compression.load_state_dict``.

    Raises:
        FileNotFoundError: the folder is no such checkpoint.
        ValueError: the checkpoint holds no such state, or not every worker's, or a file is damaged or hostile.
    """
    names = (_RANK.match(name) for name in names_in(checkpoint, "gaussiank/"))
    saved = sorted({int(found[1]) for found in names if found})
    if not saved:
        raise ValueError(f"checkpoint must hold a compression state, got {checkpoint} without one. Save shards() too.")
    if saved != list(range(len(saved))):
        raise ValueError(
            f"checkpoint must hold every worker's state, got those of ranks {saved}. Save shards() on every worker."
        )
    wanted = (rank,) if len(saved) == world_size else sources(rank, world_size, len(saved))
    states = [unpack(read(checkpoint, _WORKER.format(source)), _WORKER.format(source)) for source in wanted]
    return states[0] if len(saved) == world_size else reshard(states, rank, world_size)


def names_in(checkpoint: str | Path, prefix: str) -> tuple[str, ...]:
    """Name the tensors of a distributed checkpoint whose names start with ``prefix``."""
    return tuple(entries(checkpoint, prefix))


def read(checkpoint: str | Path, prefix: str) -> dict[str, Tensor]:
    """Read all tensors below ``prefix`` of a distributed checkpoint, on this worker alone; nothing in it is run.

    Raises:
        FileNotFoundError: the folder is no such checkpoint.
        ValueError: a file is damaged, or not as torch writes it; names it.
    """
    return {name: entry.read() for name, entry in entries(checkpoint, f"{prefix}/").items()}


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move large tensors from a nested value into ``tensors``; a tuple marks their names, and other tuples."""
    if isinstance(value, Tensor) and value.numel() >= _SMALL:
        if name in tensors:
            raise ValueError(f"names in a state must differ once joined by /, got {name!r} twice. Rename one.")
        tensors[name] = value.detach()
        return ("tensor", name)
    if isinstance(value, Mapping):
        return {key: _without_tensors(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_without_tensors(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
        return ("tuple", items) if isinstance(value, tuple) else items
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, tuple):
        kind, marked = value
        return tensors[marked] if kind == "tensor" else tuple(_with_tensors(item, tensors) for item in marked)
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    return [_with_tensors(item, tensors) for item in value] if isinstance(value, list) else value
