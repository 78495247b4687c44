"""Rows for an exchange of regions and of their sums: one length in each phase, known to every worker beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gaussiank.sparse import SparseGradient

from .collective import Call
from .rows import NOTE_BYTES, Given, filled, frame_for, notes, pack_rounded, pack_within

_SPREAD = 1.02
_BITS = 32
_MOST = 2**31 - 1


class Row(NamedTuple):
    """A row, what it holds, and a bool ``[kept]`` mask of the entries that found room in it."""

    bytes: Tensor
    given: Given
    mask: Tensor


@dataclass(frozen=True)
class Frames:
    """Pack entries into rows of known length.

    Where the wire's payloads differ in size, that is what the largest one of the last exchange took, and 2 % more: each
    row's size travels with it. The smallest entries of a payload that outgrows its frame are left out.

    Args:
        room: entries that each row has room for; None: rows are as long as they have to be.
        parts: bytes of a row of the first phase, without notes.
        sums: the same of the second.
        follow: whether these are what the last exchange took; otherwise they hold any entries, as many as ``room``.
    """

    room: int | None
    parts: int = 0
    sums: int = 0
    follow: bool = False

    @classmethod
    def after(cls, hint: Tensor | None, room: int, most: int, world_size: int) -> Frames:
        """Return the frames that follow the hint of the last exchange; ``most`` where it tells nothing of such rows."""
        if hint is None or hint.numel() != world_size + 4 or int(hint[world_size + 1]) != room:
            return cls(room, most, most, follow=True)
        parts, sums = (frame_for(int(size), _SPREAD, most) for size in hint[world_size + 2 :])
        return cls(room, parts, sums, follow=True)

    def pack(self, sparse: SparseGradient, call: Call, region: int, frame: int, note: int | None) -> Row:
        """Round and pack; ``note``, below 2**31, goes behind the entries, and with it the size if that is followed."""
        seed = call.seed(call.line.rank, region)
        if not self.follow:
            row, given = pack_rounded(sparse, call.wire, self.room, seed, note, frame)
            return Row(row, given, torch.ones_like(sparse.indices, dtype=torch.bool))
        row, size, given, mask = pack_within(sparse, call.wire, frame, seed)
        row = filled(row[:frame], note=min(note or 0, _MOST) | min(size, _MOST) << _BITS)
        return Row(row, given, torch.ones_like(sparse.indices, dtype=torch.bool) if mask is None else mask)

    def noted(self, rows: Sequence[Tensor] | Tensor) -> tuple[int | None, int]:
        """Read rows of the first phase: the largest size, None where it is not followed, and the sum of their notes."""
        read = notes(rows)
        if not self.follow:
            return None, sum(read)
        return max(note >> _BITS for note in read), sum(note & _MOST for note in read)

    def hint(self, borders: Tensor, rows: Sequence[Tensor] | Tensor) -> Tensor:
        """Append to the borders what the rows of the second phase tell of both phases' sizes."""
        if not self.follow:
            return borders
        read = notes([row[:-NOTE_BYTES] for row in rows])
        parts, sums = max(note & _MOST for note in read), max(note >> _BITS for note in read)
        return torch.cat([borders, torch.tensor([self.room, parts, sums])])
