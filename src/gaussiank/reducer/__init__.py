"""From one flat gradient to the mean over workers; knows no wrapper."""

from .precondition import AdamRows
from .reducer import GradientReducer
from .selection import Selector
from .settings import OnNonfinite, Scope, Settings, require_scope

__all__ = ["AdamRows", "GradientReducer", "OnNonfinite", "Scope", "Selector", "Settings", "require_scope"]
