"""From one flat gradient to the mean over workers; knows no wrapper."""

from .reducer import GradientReducer
from .selection import Scope, Selector, require_scope

__all__ = ["GradientReducer", "Scope", "Selector", "require_scope"]
