"""The one pass over memory: add the gradient to the residual, and collect what may be among the k largest."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .parts import HEAD, TILE, key_of
from .registry import op

MARGIN = tl.constexpr(0.95)  # of the last k-th magnitude: what is below is not among the k largest, most likely


@triton.jit
def collect(values, valid, limit, head, indices, candidates, begins, counts, room, place, MASKED: tl.constexpr):
    """Append the entries of a tile from a limit on to the list of candidates, with one atomic, and note where."""
    tile = tl.program_id(0)
    hit = key_of(values) >= limit
    if MASKED:
        hit = hit & valid
    flags = hit.to(tl.int32)
    count = tl.sum(flags)
    begin = 0
    if count > 0:
        begin = tl.atomic_add(head, count, sem="relaxed")
        target = begin + tl.cumsum(flags) - flags
        fits = hit & (target < room)
        tl.store(indices + target, place, mask=fits)
        tl.store(candidates + target, values, mask=fits)
    tl.store(begins + tile, begin)
    tl.store(counts + tile, count)


@triton.jit(do_not_specialize=["numel", "full_tiles", "room"])
def sweep_kernel(
    grad,
    residual,
    out,
    hint,
    state,
    indices,
    candidates,
    begins,
    counts,
    numel,
    full_tiles,
    room,
    ADDS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Handle one tile. A full one needs no mask, so that 16 bytes are read and written at once whatever numel is."""
    tile = tl.program_id(0)
    place = tile * TILE + tl.arange(0, TILE)
    limit = tl.maximum(key_of(tl.load(hint) * MARGIN), 1)
    if tile < full_tiles:
        values = tl.load(residual + place)
        if ADDS:
            values += tl.load(grad + place).to(tl.float32)
            tl.store(out + place, values)
        collect(values, place, limit, state + HEAD, indices, candidates, begins, counts, room, place, False)
    else:
        valid = place < numel
        values = tl.load(residual + place, mask=valid, other=0.0)
        if ADDS:
            values += tl.load(grad + place, mask=valid, other=0.0).to(tl.float32)
            tl.store(out + place, values, mask=valid)
        collect(values, valid, limit, state + HEAD, indices, candidates, begins, counts, room, place, True)


@op(
    "sweep(Tensor residual, Tensor? grad, Tensor(a!) out, Tensor hint, Tensor(b!) state, Tensor(c!) indices, "
    "Tensor(d!) candidates, Tensor(e!) begins, Tensor(f!) counts)"
)
def sweep(
    residual: Tensor,
    grad: Tensor | None,
    out: Tensor,
    hint: Tensor,
    state: Tensor,
    indices: Tensor,
    candidates: Tensor,
    begins: Tensor,
    counts: Tensor,
) -> None:
    """Write ``residual + grad`` to ``out``, 12 bytes an element, and collect candidates on the way.

    Args:
        residual: float32 ``[numel]``.
        grad: float32, bfloat16 or float16 ``[numel]``; None: nothing is added or written.
        out: float32 ``[numel]``.
        hint: 0-d float32, the last k-th magnitude; infinite where there is none.
        state: as in ``parts``.
        indices: int32 ``[room]``; tile by tile, in whatever order tiles come, the places of candidates.
        candidates: float32 ``[room]``, their values.
        begins: int32 ``[tiles]``, where the candidates of a tile begin.
        counts: int32 ``[tiles]``, how many it has.
    """
    numel = residual.numel()
    sweep_kernel[(counts.numel(),)](
        residual if grad is None else grad,
        residual,
        out,
        hint,
        state,
        indices,
        candidates,
        begins,
        counts,
        numel,
        numel // TILE,
        indices.numel(),
        ADDS=grad is not None,
        TILE=TILE,
        num_warps=8,
    )
