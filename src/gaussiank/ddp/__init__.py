"""The only room that knows DDP."""

import sys

from . import state
from .acceptance import is_sharded
from .state import DDPCompression, DDPDoor

__all__ = ["DDPCompression", "DDPDoor", "is_sharded"]

sys.modules[f"{__name__}.registration"] = state  # where pickles of whole models have looked for ``hook``
