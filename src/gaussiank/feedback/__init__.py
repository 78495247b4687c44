"""What was not sent stays here."""

from .error_feedback import ErrorFeedback, Fused, Select
from .saved import require_same_worker

__all__ = ["ErrorFeedback", "Fused", "Select", "require_same_worker"]
