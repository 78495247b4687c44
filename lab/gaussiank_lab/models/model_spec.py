"""What the lab knows of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from gaussiank_lab.data import GREY_28, ImageShape
from gaussiank_lab.tasks import TaskName


@dataclass(frozen=True)
class ModelSpec:
    """Describe a model of the lab.

    Args:
        name: its key in ``MODELS``.
        task: what it is for, which its data set must be for too.
        build: makes a new one for a number of outputs, with torch's global generator.
        outputs: classes, tokens or characters that it tells apart in its source.
        numel: number of parameters with as many outputs.
        source: where its shape comes from.
        image: its images, for a model of images.
        eval_batch: examples of the test set that it is given at once.
    """

    name: str
    task: TaskName
    build: Callable[[int], nn.Module]
    outputs: int
    numel: int
    source: str
    image: ImageShape = GREY_28
    eval_batch: int = 500

    def parameters(self, outputs: int) -> int:
        """Count the parameters for a number of outputs, without making them."""
        return count(lambda: self.build(outputs))


def count(build: Callable[[], nn.Module]) -> int:
    """Count the parameters of a model, without their memory.

    Example:
        >>> count(lambda: nn.Linear(1_000_000, 1_000_000))
        1000001000000
    """
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())
