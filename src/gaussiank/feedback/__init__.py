"""What was not sent stays here."""

from .error_feedback import ErrorFeedback, Fused, Select
from .state import require_same_worker
from .usage import OptimizerUse, changes_nothing

__all__ = ["ErrorFeedback", "Fused", "OptimizerUse", "Select", "changes_nothing", "require_same_worker"]
