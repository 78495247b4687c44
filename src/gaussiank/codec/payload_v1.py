"""Wire format 1: a header of 16 bytes, the values as they are, and int32 indices.

``magic and version, numel, kept, bytes of a value`` as little-endian int32, then ``capacity`` values, then ``capacity``
indices. A payload has room for ``capacity`` entries, so that all workers can send the same size; unused room holds
the value 0 at the last index, which adds nothing even to a reader that does not look at ``kept``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gaussiank.sparse import SparseGradient

V1_HEADER_BYTES = 16
"""Of this format alone; ``HEADER_BYTES`` is that of today's."""
VERSION = 1
_MAGIC = 0x474B00  # "GK", then the version in the lowest byte
_INDEX_BYTES = 4
_VALUE_DTYPES = {4: torch.float32, 8: torch.float64}


def payload_bytes(capacity: int, value_bytes: int = 4) -> int:
    """Return the size of a payload with room for ``capacity`` entries.

    Example:
        >>> payload_bytes(1000)
        8016
    """
    return V1_HEADER_BYTES + capacity * (value_bytes + _INDEX_BYTES)


def entries_within(max_bytes: int, value_bytes: int = 4) -> int:
    """Return how many entries fit into a payload of ``max_bytes``.

    Raises:
        ValueError: not even one fits.

    Example:
        >>> entries_within(8016)
        1000
    """
    entries = (max_bytes - V1_HEADER_BYTES) // (value_bytes + _INDEX_BYTES)
    if entries < 1:
        raise ValueError(
            f"max_bytes must be at least {payload_bytes(1, value_bytes)}, a header and one entry, got {max_bytes}. "
            "Raise it."
        )
    return entries


def encode(sparse: SparseGradient, capacity: int | None = None) -> Tensor:
    """Write a sparse gradient to a payload; no host synchronisation.

    Args:
        sparse: what to send; float32 or float64 values.
        capacity: entries that the payload has room for; ``sparse.kept`` when None.

    Returns:
        uint8 ``[payload_bytes(capacity)]`` on the device of ``sparse``.

    Raises:
        ValueError: more entries than room, or another dtype of values.

    Example:
        >>> sparse = SparseGradient(torch.tensor([1], dtype=torch.int32), torch.tensor([2.5]), numel=3)
        >>> decode(encode(sparse, capacity=2)).dense()
        tensor([0.0000, 2.5000, 0.0000])
    """
    room = sparse.kept if capacity is None else capacity
    value_bytes = sparse.values.element_size()
    if sparse.values.dtype not in _VALUE_DTYPES.values():
        raise ValueError(f"values must be float32 or float64, got {sparse.values.dtype}. Convert them.")
    if sparse.kept > room:
        raise ValueError(f"capacity must be at least the {sparse.kept} entries kept, got {room}. Cap the compressor.")
    header = torch.tensor([_MAGIC | VERSION, sparse.numel, sparse.kept, value_bytes], dtype=torch.int32, device="cpu")
    payload = torch.zeros(payload_bytes(room, value_bytes), dtype=torch.uint8, device=sparse.indices.device)
    payload[:V1_HEADER_BYTES] = header.view(torch.uint8).to(payload.device, non_blocking=True)
    values, indices = _split(payload, sparse.values.dtype)
    values[: sparse.kept] = sparse.values
    indices[: sparse.kept] = sparse.indices
    indices[sparse.kept :] = sparse.numel - 1
    return payload


def decode(payload: Tensor, numel: int | None = None, dtype: torch.dtype | None = None) -> SparseGradient:
    """Read a payload.

    On the CPU its header is checked and unused room cut off. On an accelerator that would be a synchronisation for each
    payload: there the caller must know ``numel`` and ``dtype``, and unused room comes back as zeros at the last index.

    Args:
        payload: uint8, what ``encode`` wrote.
        numel: length that is expected; on the CPU None takes the header's word.
        dtype: dtype of the values that is expected; None takes the header's word, and float32 on an accelerator.

    Raises:
        ValueError: foreign, truncated or damaged header, or not what was expected.
    """
    if payload.device.type != "cpu":
        if numel is None:
            raise ValueError("numel must be given for a payload on an accelerator, got None. Pass the bucket's length.")
        values, indices = _split(payload, dtype or torch.float32)
        return SparseGradient(indices, values, numel)
    if payload.dtype != torch.uint8 or payload.numel() < V1_HEADER_BYTES:
        raise ValueError(
            f"payload must be uint8 with a header of {V1_HEADER_BYTES} bytes, got {payload.numel()} bytes. "
            "Pass it whole."
        )
    magic, sent_numel, kept, value_bytes = _view(payload[:V1_HEADER_BYTES], torch.int32).tolist()
    if magic & ~0xFF != _MAGIC:
        raise ValueError(
            f"payload must begin with the gaussiank magic number, got {magic:#x}. It is no payload of ours."
        )
    if magic & 0xFF != VERSION:
        raise ValueError(
            f"payload must have wire version {VERSION}, got {magic & 0xFF}. Use one gaussiank on all workers."
        )
    body = payload.numel() - V1_HEADER_BYTES
    if (
        value_bytes not in _VALUE_DTYPES
        or body % (value_bytes + _INDEX_BYTES)
        or not 0 <= kept * (value_bytes + _INDEX_BYTES) <= body
    ):
        raise ValueError(
            f"payload must hold the {kept} entries its header names, got {payload.numel()} bytes. It is damaged."
        )
    if numel is not None and sent_numel != numel:
        raise ValueError(
            f"payload must be of a vector of {numel} entries, got one of {sent_numel}. Workers disagree on the model."
        )
    if dtype not in (None, _VALUE_DTYPES[value_bytes]):
        raise ValueError(
            f"payload must hold values of {dtype}, got {_VALUE_DTYPES[value_bytes]}. Workers disagree on the model."
        )
    values, indices = _split(payload, _VALUE_DTYPES[value_bytes])
    return SparseGradient(indices[:kept], values[:kept], sent_numel)


def _split(payload: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """View the body of a payload as values and indices, without a copy when it is aligned."""
    body = payload[V1_HEADER_BYTES:]
    room = body.numel() // (dtype.itemsize + _INDEX_BYTES)
    return _view(body[: room * dtype.itemsize], dtype), _view(body[room * dtype.itemsize :], torch.int32)


def _view(part: Tensor, dtype: torch.dtype) -> Tensor:
    return (part.clone() if part.storage_offset() % dtype.itemsize else part).view(dtype)
