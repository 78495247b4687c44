"""What was not sent stays here."""

from .error_feedback import ErrorFeedback, Fused, Select

__all__ = ["ErrorFeedback", "Fused", "Select"]
