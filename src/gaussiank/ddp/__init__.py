"""The only room that knows DDP."""

from .acceptance import is_sharded
from .state import DDPCompression, DDPDoor

__all__ = ["DDPCompression", "DDPDoor", "is_sharded"]
