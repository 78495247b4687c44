"""What was not sent stays here."""

from .error_feedback import ErrorFeedback, Fused, Select
from .optimizers import AdamWarning, OptimizerUse, check_optimizers, told_of_adam
from .state import require_same_worker

__all__ = [
    "AdamWarning",
    "ErrorFeedback",
    "Fused",
    "OptimizerUse",
    "Select",
    "check_optimizers",
    "require_same_worker",
    "told_of_adam",
]
