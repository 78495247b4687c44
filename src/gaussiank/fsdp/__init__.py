"""The only room that knows FSDP2: ``fully_shard`` inside a node, sparse gradients between nodes."""

from .state import FSDPCompression, FSDPDoor

__all__ = ["FSDPCompression", "FSDPDoor"]
