"""The only room that knows DDP."""

from .registration import DDPDoor, hook
from .state import DDPCompression

__all__ = ["DDPCompression", "DDPDoor", "hook"]
