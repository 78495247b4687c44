"""How workers agree: one collective a file, one line each in the table."""

from .agreement import require_agreement
from .all_gather import AllGather
from .collective import Collective, Exchange, Outcome
from .dense import DenseAllReduce, ring_bytes

COLLECTIVES: dict[str, type[Collective]] = {
    "dense": DenseAllReduce,
    "allgather": AllGather,
}
"""Name -> class; the contract tests are driven by this table."""

__all__ = [
    "COLLECTIVES",
    "AllGather",
    "Collective",
    "DenseAllReduce",
    "Exchange",
    "Outcome",
    "require_agreement",
    "ring_bytes",
]
