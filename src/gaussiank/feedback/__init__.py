"""What was not sent stays here."""

from .error_feedback import ErrorFeedback, Fused, Select
from .state import require_same_worker
from .usage import OptimizerUse

__all__ = ["ErrorFeedback", "Fused", "OptimizerUse", "Select", "require_same_worker"]
