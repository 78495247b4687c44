"""The learning rate over steps."""

from __future__ import annotations

import math
from typing import Literal

LRSchedule = Literal["constant", "step", "cosine"]


def learning_rate(lr: float, schedule: LRSchedule, step: int, steps: int, warmup_steps: int = 0) -> float:
    """Return the learning rate of a step; it depends on nothing else, so a run can go on anywhere.

    Args:
        lr: the highest.
        schedule: ``constant``; ``step``, a tenth after half of the steps and a hundredth after three quarters;
            ``cosine``, falling to 0 along half a wave.
        step: from 1.
        steps: of the whole training.
        warmup_steps: over which it rises to ``lr`` in a line, before anything else.

    Source: He et al. 2016, section 4.2 (``step``); Loshchilov and Hutter 2017 (``cosine``).

    Example:
        >>> [round(learning_rate(1.0, "step", step, 8), 2) for step in (1, 4, 5, 7)]
        [1.0, 1.0, 0.1, 0.01]
        >>> [learning_rate(1.0, "constant", step, 8, warmup_steps=4) for step in (1, 4, 8)]
        [0.25, 1.0, 1.0]
    """
    if step <= warmup_steps:
        return lr * step / warmup_steps
    done = (step - 1) / steps
    if schedule == "step":
        return lr * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * (step - 1 - warmup_steps) / max(1, steps - warmup_steps))) / 2
    return lr
