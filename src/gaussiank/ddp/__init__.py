"""The only room that knows DDP."""

from .registration import compress, hook
from .state import Compression

__all__ = ["Compression", "compress", "hook"]
