"""Index codes: one a file, one line each in the table."""

from __future__ import annotations

from .chunks import Chunks
from .eliasfano import EliasFano
from .index_code import DeviceCode, IndexCode
from .raw import Raw
from .rice import Rice
from .seed import Seed, SharedDraw

INDEX_CODES: dict[str, IndexCode] = {code.name: code for code in (Raw(), Rice(), EliasFano(), Chunks(), Seed())}
"""Name -> code."""

__all__ = [
    "INDEX_CODES",
    "Chunks",
    "DeviceCode",
    "EliasFano",
    "IndexCode",
    "Raw",
    "Rice",
    "Seed",
    "SharedDraw",
]
