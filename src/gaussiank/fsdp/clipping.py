"""Clip a replica's gradient before anything of it is selected, by its norm over all shards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank.momentum import LocalClip

from .shard import Plan


class ShardedClip:
    """``LocalClip`` where a worker holds a shard alone: one number more is summed over the shard group.

    Args:
        clip: the norm, and what shares it.
        group: the shard group, over which the norm is summed.
    """

    def __init__(self, clip: LocalClip, group: dist.ProcessGroup) -> None:
        self._clip, self._group = clip, group

    def apply(self, parts: Sequence[tuple[Plan, Tensor]], scale: float) -> None:
        """Scale gradients down together to their share of the norm, in place; every rank of the shard group calls it.

        Args:
            parts: plans and gradients of the modules that are exchanged together.
            scale: what they are multiplied by: by a ``GradScaler``, and by torch, which divides later.
        """
        clip = self._clip
        parameters = sum(len(plan.parameters) for plan, _ in parts)
        limit = clip.norm * scale / clip.parameters**0.5 * (1 if clip.per_layer else parameters**0.5)
        # in float64: squares of float32 overflow from 2e19 on
        pieces = [piece for plan, gradient in parts for _, piece in plan.pieces(gradient)]
        squares = torch.stack([piece.double().square().sum() for piece in pieces])
        squares = squares if clip.per_layer else squares.sum().reshape(1)
        dist.all_reduce(squares, group=self._group)
        factors = limit / squares.sqrt()
        factors = torch.where((factors > 0) & (factors < 1), factors, 1.0)
        for piece, factor in zip(pieces, factors.expand(len(pieces)), strict=True):
            piece.mul_(factor)
