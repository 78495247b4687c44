"""The only room that knows DDP."""

from .acceptance import is_sharded
from .registration import DDPDoor, hook
from .state import DDPCompression

__all__ = ["DDPCompression", "DDPDoor", "hook", "is_sharded"]
