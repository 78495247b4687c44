"""The mean of rows as every worker has sent one."""

from __future__ import annotations

import torch
from torch import Tensor

from gaussiank.ops.rows import COUNTER_BYTES, NarrowMean, RowFormat

from .decode_mean import decode_mean


def mean_of_rows(
    rows: Tensor, layout: RowFormat, out: Tensor, narrow: NarrowMean | None = None, counters: Tensor | None = None
) -> Tensor:
    """Write the mean of what rows hold to ``out``, or to a gradient of 16 bits.

    Args:
        rows: uint8 ``[world_size, bytes]``.
        layout: of each.
        out: float32 ``[numel]``; overwritten.
        narrow: the gradient, and the residual that takes what is rounded off.
        counters: int32 ``[16]``, zero, behind the row that this worker has sent; None: they are made.

    Returns:
        Whether all of it is finite, as a 0-d bool tensor.
    """
    if counters is None:
        counters = torch.zeros(COUNTER_BYTES // 4, dtype=torch.int32, device=out.device)
    finite = torch.empty((), dtype=torch.bool, device=out.device)
    grad, residual = narrow or (None, None)
    decode_mean(rows, out, counters, finite, grad, residual, layout.slots, list(layout[3:]))
    return finite
