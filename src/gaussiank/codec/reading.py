"""One reader for the payloads of every release."""

from __future__ import annotations

import torch
from torch import Tensor

from gaussiank.sparse import SparseGradient

from . import payload as compact
from . import raw
from .indices import SharedDraw
from .wire import require_payload, with_dtype


def decode(
    payload: Tensor,
    numel: int | None = None,
    dtype: torch.dtype | None = None,
    *,
    shared: SharedDraw | None = None,
) -> SparseGradient:
    """Read a payload of any format and any codes; on an accelerator, of format 1 (see ``Wire.decode`` for format 2).

    Args:
        payload: uint8 ``[bytes]``. On the CPU it is untrusted: all of it is checked.
        numel: length that is expected; on the CPU None takes the header's word.
        dtype: dtype of the values that is expected; on the CPU None takes the header's word.
        shared: how indices are drawn, if they are not sent.

    Raises:
        ValueError: foreign, truncated or damaged, of a version that is not known, or not what was expected.

    Example:
        >>> from gaussiank.codec import Wire
        >>> sparse = SparseGradient(torch.tensor([7], dtype=torch.int32), torch.tensor([0.5]), numel=1000)
        >>> decode(Wire("eliasfano", "8bit").encode(sparse)).indices.tolist(), decode(raw.encode(sparse)).kept
        ([7], 1)
    """
    if payload.device.type == "cpu":
        require_payload(payload)
        if compact.is_ours(payload) and int(payload[0]) != raw.VERSION:
            return with_dtype(compact.read(payload, numel, shared=shared), dtype)
    return raw.decode(payload, numel, dtype)
