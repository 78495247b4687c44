"""SparseGradient <-> one uint8 payload, exact and versioned; everything lossy has happened before."""

from .raw import HEADER_BYTES, decode, encode, entries_within, payload_bytes

__all__ = ["HEADER_BYTES", "decode", "encode", "entries_within", "payload_bytes"]
