"""Index codes: one a file, one line each in the table."""

from __future__ import annotations

from .chunks import Chunks, Chunks12
from .eliasfano import EliasFano
from .index_code import DeviceCode, IndexCode
from .raw import Raw
from .rice import Rice, UnaryRice
from .seed import Seed, SharedDraw

INDEX_CODES: dict[str, IndexCode] = {
    code.name: code for code in (Raw(), Rice(), EliasFano(), Chunks(), Chunks12(), Seed())
}
"""Name -> code."""

RETIRED_CODES: tuple[IndexCode, ...] = (UnaryRice(),)
"""Codes of earlier releases: what they wrote is read for ever, and nothing is written in them."""

__all__ = [
    "INDEX_CODES",
    "RETIRED_CODES",
    "Chunks",
    "Chunks12",
    "DeviceCode",
    "EliasFano",
    "IndexCode",
    "Raw",
    "Rice",
    "Seed",
    "SharedDraw",
    "UnaryRice",
]
