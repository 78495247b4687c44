"""SparseGradient <-> one uint8 payload, exact and versioned, but for the rounding of ``Wire.pack``.

``Wire`` is the compact form. ``encode`` writes format 1, of entries as they are; ``decode`` reads every format.
"""

from .indices import INDEX_CODES, SharedDraw
from .native import HEADER_BYTES, framed, framed_sizes
from .payload import KERNEL_WIRES, counts
from .payload_v1 import encode, entries_within, payload_bytes
from .values import VALUE_CODES, Rounding
from .wire import Wire, chosen_wire, decode, default_wire

__all__ = [
    "HEADER_BYTES",
    "INDEX_CODES",
    "KERNEL_WIRES",
    "VALUE_CODES",
    "Rounding",
    "SharedDraw",
    "Wire",
    "chosen_wire",
    "counts",
    "decode",
    "default_wire",
    "encode",
    "entries_within",
    "framed",
    "framed_sizes",
    "payload_bytes",
]
