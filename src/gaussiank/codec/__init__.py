"""SparseGradient <-> one uint8 payload, exact and versioned; everything lossy has happened before.

``Wire`` is the compact form. ``encode`` writes format 1, of entries as they are; ``decode`` reads every format.
"""

from .choice import default_wire, entries_of_any_bucket
from .indices import INDEX_CODES, SharedDraw
from .payload import counts
from .raw import HEADER_BYTES, encode, entries_within, payload_bytes
from .reading import decode
from .values import VALUE_CODES, Rounding
from .wire import Wire

__all__ = [
    "HEADER_BYTES",
    "INDEX_CODES",
    "VALUE_CODES",
    "Rounding",
    "SharedDraw",
    "Wire",
    "counts",
    "decode",
    "default_wire",
    "encode",
    "entries_of_any_bucket",
    "entries_within",
    "payload_bytes",
]
