"""The only room that knows DDP."""

from .compression import Compression
from .registration import compress, hook

__all__ = ["Compression", "compress", "hook"]
