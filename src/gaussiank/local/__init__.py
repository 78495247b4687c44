"""Local steps: workers train alone for some steps, and exchange what they have learnt since."""

from .steps import LocalSteps

__all__ = ["LocalSteps"]
