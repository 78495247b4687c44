"""Entries <-> rows of bytes of equal length: the only file here that calls the codec, and how entries are summed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank import codec, ops
from gaussiank.sparse import SparseGradient

from .line import Line, Message

_NOTE = torch.int64
_TRAILER_BYTES = 2 * _NOTE.itemsize


def row_bytes(room: int, value_bytes: int = 4) -> int:
    """Return the length of a row with room for so many entries.

    Example:
        >>> row_bytes(100) - row_bytes(0)
        800
    """
    return codec.payload_bytes(room, value_bytes) + _TRAILER_BYTES


def pack(sparse: SparseGradient, room: int, note: int = 0) -> Tensor:
    """Encode entries, and behind them their count and a number of the caller's.

    Args:
        sparse: at most ``room`` entries.
        room: entries that the row has room for, the same on every worker.
        note: any int64.

    Returns:
        uint8 ``[row_bytes(room)]``.

    Raises:
        ValueError: more entries than room.
    """
    payload = codec.encode(sparse, room)
    trailer = torch.tensor([sparse.kept, note], dtype=_NOTE).view(torch.uint8)
    return torch.cat([payload, trailer.to(payload.device, non_blocking=True)])


def unpack(
    rows: Sequence[Tensor] | Tensor, numels: Sequence[int], dtype: torch.dtype
) -> tuple[list[SparseGradient], list[int]]:
    """Decode rows; returns their entries and their notes. Reads all counts at once, one synchronisation.

    Args:
        rows: uint8 rows as ``pack`` makes them.
        numels: length of the vector that each row is a part of.
        dtype: dtype of the values.
    """
    trailers = torch.stack([row[-_TRAILER_BYTES:] for row in rows]).view(_NOTE).tolist()
    parts = []
    for row, numel, (kept, _) in zip(rows, numels, trailers, strict=True):
        part = codec.decode(row[:-_TRAILER_BYTES], numel, dtype)
        # on an accelerator unused room comes back as zeros at the last index, which would look like an entry
        parts.append(SparseGradient(part.indices[:kept], part.values[:kept], numel))
    return parts, [note for _, note in trailers]


def agree_on_capacity(line: Line, sparse: SparseGradient) -> Generator[Message[Any], Any, int]:
    """Ask for the largest count on any worker: one short message."""
    largest = torch.tensor([sparse.kept], dtype=torch.int64, device=sparse.indices.device)
    return int((yield line.all_reduce(largest, dist.ReduceOp.MAX)))


def pick(sparse: SparseGradient, mask: Tensor) -> SparseGradient:
    """Return the entries where a bool ``[kept]`` mask is set."""
    return SparseGradient(sparse.indices[mask], sparse.values[mask], sparse.numel)


def largest_mask(sparse: SparseGradient, room: int) -> Tensor:
    """Mark the ``room`` entries of largest magnitude, infinities and NaN first; all when there is room for all.

    Example:
        >>> sparse = SparseGradient(torch.tensor([1, 4, 6], dtype=torch.int32), torch.tensor([2.0, -3.0, 1.0]), 9)
        >>> largest_mask(sparse, 2)
        tensor([ True,  True, False])
    """
    if sparse.kept <= room:
        return torch.ones_like(sparse.indices, dtype=torch.bool)
    mask = torch.zeros_like(sparse.indices, dtype=torch.bool)
    if room:
        mask[ops.select_topk(sparse.values.contiguous(), room)] = True
    return mask


def merge(parts: Sequence[SparseGradient]) -> SparseGradient:
    """Add sparse vectors up, in the given order: the same bits wherever the same parts are merged.

    Example:
        >>> one = SparseGradient(torch.tensor([0, 2], dtype=torch.int32), torch.tensor([5.0, 7.0]), 4)
        >>> two = SparseGradient(torch.tensor([2, 3], dtype=torch.int32), torch.tensor([1.0, 1.0]), 4)
        >>> merge([one, two]).dense()
        tensor([5., 0., 8., 1.])
    """
    indices, places = torch.unique(torch.cat([part.indices for part in parts]), return_inverse=True)
    values = parts[0].values.new_zeros(indices.numel())
    start = 0
    for part in parts:  # no index repeats within a part, so the order of additions is fixed on every device
        values.index_add_(0, places[start : start + part.kept], part.values)
        start += part.kept
    return SparseGradient(indices, values, parts[0].numel)


def member_mask(indices: Tensor, among: Tensor) -> Tensor:
    """Mark which of ascending ``indices`` are ``among`` other ascending ones.

    Example:
        >>> member_mask(torch.tensor([1, 4, 6]), among=torch.tensor([0, 1, 6, 7]))
        tensor([ True, False,  True])
    """
    if not among.numel():
        return torch.zeros_like(indices, dtype=torch.bool)
    places = torch.searchsorted(among, indices).clamp_(max=among.numel() - 1)
    return among[places] == indices


def rest_of(sparse: SparseGradient, entered: Tensor) -> SparseGradient | None:
    """Return the entries that did not enter, None when all did; ``entered`` is a bool ``[kept]`` mask."""
    return None if bool(entered.all()) else pick(sparse, ~entered)


def gathered_mean(parts: Sequence[SparseGradient], out: Tensor) -> Tensor:
    """Write the mean of one part for each worker to ``out``; tells whether all of it is finite, as a 0-d tensor."""
    ops.scatter_mean(parts, out)
    return ops.all_finite(out[torch.cat([part.indices for part in parts])])


def summed_mean(total: SparseGradient, world_size: int, out: Tensor) -> Tensor:
    """Write a sum over workers, divided by their number, to ``out``; tells whether it is finite, as a 0-d tensor."""
    mean = total.values / world_size
    ops.scatter_mean([SparseGradient(total.indices, mean, total.numel)], out)
    return ops.all_finite(mean)
