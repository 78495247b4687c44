"""The one pass over memory: add the gradient to the residual, and collect what may be among the k largest."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .parts import HEAD, INFINITE, TILE, key_of
from .registry import op

MARGIN = tl.constexpr(0.95)  # of the last k-th magnitude: what is below is not among the k largest, most likely


@triton.jit
def collect(values, limit, head, indices, candidates, begins, counts, room, place):
    """Append the entries of a tile from a limit on to the list of candidates, with one atomic, and note where."""
    tile = tl.program_id(0)
    hit = key_of(values) >= limit
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


@triton.jit
def at_16(vector, place, ALIGNED: tl.constexpr):
    """Return the addresses of a full tile, which begin at a multiple of 16 bytes where the vector does."""
    if ALIGNED:
        return tl.multiple_of(vector + place, 16)
    return vector + place


@triton.jit(
    do_not_specialize=["numel", "full_tiles", "room"],
    do_not_specialize_on_alignment=["grad", "residual", "out", "hint"],
)
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
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Handle one tile. A full one needs no mask, so that 16 bytes are read and written at once whatever numel is."""
    tile = tl.program_id(0)
    place = tile * TILE + tl.arange(0, TILE)
    limit = key_of(tl.load(hint) * MARGIN)
    limit = tl.where(limit == 0, INFINITE, limit)  # what is zero, or behind the end, never reaches it
    if tile < full_tiles:
        values = tl.load(at_16(residual, place, ALIGNED))
        if ADDS:
            values += tl.load(at_16(grad, place, ALIGNED)).to(tl.float32)
            tl.store(at_16(out, place, ALIGNED), values)
    else:
        valid = place < numel
        values = tl.load(residual + place, mask=valid, other=0.0)
        if ADDS:
            values += tl.load(grad + place, mask=valid, other=0.0).to(tl.float32)
            tl.store(out + place, values, mask=valid)
    collect(values, limit, state + HEAD, indices, candidates, begins, counts, room, place)


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
        hint: float32 of one entry, the last k-th magnitude; zero or infinite where there is none.
        state: as in ``parts``.
        indices: int32 ``[room]``; tile by tile, in whatever order tiles come, the places of candidates.
        candidates: float32 ``[room]``, their values.
        begins: int32 ``[tiles]``, where the candidates of a tile begin.
        counts: int32 ``[tiles]``, how many it has.
    """
    numel, ends = residual.numel(), (residual, out, residual if grad is None else grad)
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
        ALIGNED=all(one.data_ptr() % 16 == 0 for one in ends),
        TILE=TILE,
        num_warps=8,
        enable_fp_fusion=False,
    )
