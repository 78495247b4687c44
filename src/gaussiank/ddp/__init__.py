"""The only room that knows DDP."""

from .acceptance import is_sharded
from .state import DDPCompression, DDPDoor, hook

__all__ = ["DDPCompression", "DDPDoor", "hook", "is_sharded"]
