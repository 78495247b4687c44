"""Exact Top_k by the kernels: one pass over memory, then work on little more than k candidates; nobody waits."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from gaussiank.ops.reference import Taken, TakenRow
from gaussiank.ops.rows import COUNTER_BYTES, RowFormat

from .count import count
from .emit import emit
from .pack import BLOCK
from .parts import STATE_NUMEL, TILE, TILES, ZERO
from .pick import pick
from .refine import refine
from .sweep import sweep


def room_for(numel: int, k: int) -> int:
    """Return how many candidates there is room for; more of them cost a second pass."""
    return min(numel, max(4 * k, numel // 32, 4096))


def take(
    residual: Tensor,
    k: int,
    hint: Tensor | None,
    grad: Tensor | None = None,
    out: Tensor | None = None,
    layout: RowFormat | None = None,
) -> Taken:
    """Run ``reference.accumulate_topk``, or ``reference.topk`` of ``residual`` where there is no ``grad``.

    With a layout, a row of it is written too, and ``out`` keeps what that rounds off.
    """
    numel, device = residual.numel(), residual.device
    out = residual if out is None else out
    room, tiles = room_for(numel, k), triton.cdiv(numel, TILE)
    groups = triton.cdiv(tiles, TILES)

    def ints(length: int) -> Tensor:
        return torch.empty(length, dtype=torch.int32, device=device)

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    blocks = 0 if layout is None or layout.offset_bits != 12 else triton.cdiv(k, BLOCK.value)
    state = torch.zeros(STATE_NUMEL + blocks, dtype=torch.int32, device=device)
    places, candidates, begins, counts = ints(room), floats(room), ints(tiles), ints(tiles)
    hint = state[ZERO : ZERO + 1].view(torch.float32) if hint is None else hint.float()
    sweep(residual, grad, out, hint, state, places, candidates, begins, counts)
    pick(candidates, out, state, k)
    refine(out, state)
    above, equal, indices, values, next_hint = ints(groups), ints(groups), ints(k), floats(k), floats()
    count(candidates, out, state, begins, counts, above, equal)
    row, frame, removes = None, [], grad is not None
    if layout is not None:
        row, frame = torch.empty(layout.length + COUNTER_BYTES, dtype=torch.uint8, device=device), list(layout[2:])
    emit(candidates, places, out, state, begins, counts, above, equal, indices, values, next_hint, row, frame, removes)
    if row is None:
        return Taken(indices, values, next_hint)
    taken = TakenRow(indices, values, next_hint)
    taken.row = row
    return taken
