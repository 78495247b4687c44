"""Top_k chunk by chunk: every stretch of the vector sends its share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaussiank import ops

from .compressor import Compressor, SelectContext, Selection


@dataclass(frozen=True)
class ChunkTopK(Compressor):
    """Choose the largest entries of each chunk of consecutive entries, exactly k in all.

    A chunk's share is ``k chunk / numel``, rounded down or up so that the shares add up to k; which chunks are rounded
    up moves on by one chunk a step, so that a share below one entry still comes round. Within a chunk the choice is the
    exact Top_k, ties to the lowest index. No count depends on the data, every chunk fits a cache, and an index within a
    chunk needs few bits; in return a chunk of large entries sends no more than one of small ones.

    Args:
        chunk: entries in a chunk; the last one may be shorter. A larger one comes nearer to Top_k.

    Raises:
        ValueError: ``chunk`` below 1.

    Source: Peng, Quesnelle and Kingma 2024, "DeMo: Decoupled Momentum Optimization"; Sarfi et al. 2025, "Communication
    Efficient LLM Pre-training with SparseLoCo" (chunks of 64 x 64 entries).
    Differs: a chunk is a stretch of the flat vector, not a block of a weight matrix; no cosine transform comes first
    (DeMo); k is the total and not a number for each chunk.

    Example:
        >>> import torch
        >>> ChunkTopK(chunk=2).select(torch.tensor([3.0, -4.0, 2.0, 0.5]), k=2).indices
        tensor([1, 2], dtype=torch.int32)
    """

    chunk: int = 4096

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1 entry, got {self.chunk}. SparseLoCo uses 4096.")

    def select(self, accumulated: Tensor, k: int, turn: SelectContext | None = None) -> Selection:
        """Choose each chunk's share of the k."""
        ops.require_vector(accumulated, "accumulated")
        numel = accumulated.numel()
        ops.require_k(k, numel)
        chunk = min(self.chunk, numel)
        return Selection(ops.chunk_topk(accumulated, chunk, _shares(numel, chunk, k, turn.step if turn else 0)))


def _shares(numel: int, chunk: int, k: int, step: int) -> Tensor:
    """Split k over the chunks; an int64 tensor whose sum is k.

    Chunk i, from a to b, gets ``floor((k b + phase) / numel) - floor((k a + phase) / numel)``: the terms cancel down to
    k. The phase moves the rounding on by one chunk a step.
    """
    phase = step * k * chunk % numel
    bounds = torch.arange(0, numel + chunk, chunk, device="cpu").clamp_(max=numel)
    return ((k * bounds + phase) // numel).diff()  # at most 2^62 + 2^31: fits int64
