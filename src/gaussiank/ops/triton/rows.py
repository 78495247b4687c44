"""The mean of rows as every worker has sent one."""

from __future__ import annotations

import torch
from torch import Tensor

from gaussiank.ops.rows import NarrowMean, RowFormat

from .decode_mean import decode_mean


def mean_of_rows(rows: Tensor, layout: RowFormat, out: Tensor, narrow: NarrowMean | None = None) -> Tensor:
    """Write the mean of what rows hold to ``out``, or to a gradient of 16 bits.

    Args:
        rows: uint8 ``[world_size, bytes]``.
        layout: of each.
        out: float32 ``[numel]``; overwritten.
        narrow: the gradient, and the residual that takes what is rounded off.

    Returns:
        Whether all of it is finite, as a 0-d bool tensor.
    """
    state = torch.zeros(16, dtype=torch.int32, device=out.device)
    finite = torch.empty((), dtype=torch.bool, device=out.device)
    frame = [layout.counts_at, layout.full_at, layout.offsets_at, layout.values_at]
    grad, residual = narrow or (None, None)
    decode_mean(rows, out, state, finite, grad, residual, layout.slots, frame, layout.value_bits)
    return finite
