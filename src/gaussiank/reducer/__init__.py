"""From one flat gradient to the mean over workers; knows no wrapper."""

from .precondition import AdamRows, output_dimensions
from .reducer import GradientReducer
from .selection import Selector
from .settings import OnNonfinite, Scope, Settings, require_scope

__all__ = [
    "AdamRows",
    "GradientReducer",
    "OnNonfinite",
    "Scope",
    "Selector",
    "Settings",
    "output_dimensions",
    "require_scope",
]
