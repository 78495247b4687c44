"""Values at indices that all workers know: each worker sums its share of them, and sends the sum to all."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gaussiank.codec import Wire, sections
from gaussiank.sparse import SparseGradient

from .collective import Call
from .line import Message
from .rows import rounded

_FLAG_BYTES = 1


class Sums(NamedTuple):
    """What came of it.

    Attributes:
        values: ``[k]`` sums over workers in rank order, the same bits on every worker.
        errors: what was rounded off: this worker's values, and the sums of its share.
        flagged: whether any worker raised its flag.
    """

    values: Tensor
    errors: tuple[SparseGradient, ...]
    flagged: bool


def sums_bytes(k: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
    """Return what each worker sends for the sums of ``k`` values: 2 (P - 1) / P of them, as a ring would."""
    return 2 * (world_size - 1) * share_bytes(k, world_size, wire, dtype)


def share_bytes(k: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
    """Return the length of a message with a share of ``k`` values."""
    return sections.values_bytes(wire, _width(k, world_size), dtype) + _FLAG_BYTES


def sums(sparse: SparseGradient, call: Call, *, flag: bool) -> Generator[Message[Any], Any, Sums]:
    """Sum values over workers that have the same indices, in two messages that are both as narrow as the wire.

    Values are rounded as they leave, a share of them in each message; sums are rounded once more by the owner of the
    share. Both errors are returned, so nothing is lost over all workers.

    Args:
        sparse: entries, at the same indices on every worker.
        call: line, wire and seeds.
        flag: a bit that all workers get to see if any raises it.
    """
    line, wire, dtype = call.line, call.wire, sparse.values.dtype
    width = _width(sparse.kept, line.world_size)
    places = [slice(rank * width, (rank + 1) * width) for rank in range(line.world_size)]
    shares = [SparseGradient(sparse.indices[place], sparse.values[place], sparse.numel) for place in places]
    given = [rounded(share, wire, call.seed(line.rank, rank)) for rank, share in enumerate(shares)]
    flags = sparse.values.new_full((_FLAG_BYTES,), flag, dtype=torch.uint8)
    rows = [torch.cat([sections.write_values(wire, one.sparse.values, width), flags]) for one in given]
    received = yield line.all_to_all(torch.stack(rows))
    own = shares[line.rank]
    total = torch.zeros_like(own.values)
    for row in received:  # in rank order
        total += sections.read_values(wire, row[:-_FLAG_BYTES], own.kept, width, dtype)
    owned = rounded(SparseGradient(own.indices, total, sparse.numel), wire, call.seed(line.rank, line.world_size))
    payload = sections.write_values(wire, owned.sparse.values, width)
    gathered = yield line.all_gather(torch.cat([payload, received[:, -_FLAG_BYTES:].amax(0)]))
    parts = [
        sections.read_values(wire, row[:-_FLAG_BYTES], share.kept, width, dtype)
        for row, share in zip(gathered, shares, strict=True)
    ]
    errors: tuple[SparseGradient, ...] = owned.errors()
    if not wire.exact:
        error = torch.cat([one.error for one in given if one.error is not None])
        errors = SparseGradient(sparse.indices, error, sparse.numel), *errors
    return Sums(torch.cat(parts), errors, bool(gathered[:, -_FLAG_BYTES:].any()))


def _width(k: int, world_size: int) -> int:
    """Return the values of a share: all have room for as many."""
    return max(1, -(-k // world_size))
