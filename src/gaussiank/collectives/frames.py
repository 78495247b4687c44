"""Rows for an exchange of regions and of their sums: all of one length, known to every worker beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gaussiank.sparse import SparseGradient

from .collective import Call
from .rows import Given, filled, frame_for, notes, pack_rounded, pack_within

_SPREAD = 1.02
_BITS = 32
_MOST = 2**31 - 1


class Row(NamedTuple):
    """A row, what it holds, and a bool ``[kept]`` mask of the entries that found room in it, None when all did."""

    bytes: Tensor
    given: Given
    mask: Tensor | None = None


@dataclass(frozen=True)
class Frames:
    """Pack entries into rows of known length.

    Where the wire's payloads differ in size, that is what the largest one of the last exchange took, and 2 % more: each
    row's size travels with it. The smallest entries of a payload that outgrows its frame are left out.

    Args:
        room: entries that each row has room for; None: rows are as long as they have to be.
        length: bytes of a row without its note.
        follow: whether that is what the last exchange took; otherwise it holds any entries, as many as ``room``.
    """

    room: int | None
    length: int = 0
    follow: bool = False

    @classmethod
    def after(cls, call: Call, room: int | None, most: int) -> Frames:
        """Return frames of ``most`` bytes, or of what the hint of the last exchange tells of rows with such a room."""
        if room is None or not call.wire.varies:
            return cls(room, most)
        hint, place = call.hint, call.line.world_size + 1
        if hint is not None and hint.numel() == place + 2 and int(hint[place]) == room:
            most = frame_for(int(hint[place + 1]), _SPREAD, most)
        return cls(room, most, follow=True)

    def pack(self, sparse: SparseGradient, call: Call, region: int, load: int, size: int = 0) -> Row:
        """Round and pack, with a note behind the entries.

        Args:
            sparse: entries of one region.
            call: of the exchange.
            region: which one; the number of workers for sums.
            load: entries that there were, or have come, of the region.
            size: the largest payload seen so far, in bytes; the note has the larger of that and this one.
        """
        seed = call.seed(call.line.rank, region)
        if not self.follow:
            row, given = pack_rounded(sparse, call.wire, self.room, seed, load, self.length)
            return Row(row, given)
        row, own, given, mask = pack_within(sparse, call.wire, self.length, seed)
        note = min(load, _MOST) | min(max(own, size), _MOST) << _BITS
        return Row(filled(row[: self.length], note=note), given, mask)

    @staticmethod
    def without_cut(sent: Tensor, rows: Sequence[Row], parts: Sequence[SparseGradient]) -> Tensor:
        """Take what found no room out of a bool ``[kept]`` mask of all that the parts hold, in their order."""
        if all(row.mask is None for row in rows):
            return sent
        masks = [torch.ones_like(part.indices, dtype=torch.bool) if row.mask is None else row.mask
                 for row, part in zip(rows, parts, strict=True)]  # fmt: skip
        left = sent.clone()
        left[sent] = torch.cat(masks)
        return left

    def noted(self, rows: Sequence[Tensor] | Tensor) -> tuple[list[int], int]:
        """Read the loads behind rows, and the largest size, 0 where it is not followed."""
        read = notes(rows)
        if not self.follow:
            return read, 0
        return [note & _MOST for note in read], max(note >> _BITS for note in read)

    def hint(self, borders: Tensor, size: int, finite: Tensor) -> Tensor | None:
        """Append the size to the borders; None where what infinities and NaN took says nothing of the next exchange."""
        if not self.follow:
            return borders
        return torch.cat([borders, torch.tensor([self.room, size], device="cpu")]) if bool(finite) else None
