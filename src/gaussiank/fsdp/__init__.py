"""The only room that knows FSDP2: ``fully_shard`` inside a node, sparse gradients between nodes."""

from .registration import FSDPDoor
from .state import FSDPCompression

__all__ = ["FSDPCompression", "FSDPDoor"]
