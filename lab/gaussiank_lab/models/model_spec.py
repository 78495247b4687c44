"""What the lab knows of a model, and any image classifier of torchvision as one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

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


PREFIX = "torchvision:"
OUTPUTS = 1000
_LARGER = {"inception_v3": 299}
_WITHOUT_SIDE_OUTPUTS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def torchvision_model(name: str) -> ModelSpec:
    """Describe ``torchvision:NAME``, without pretrained weights.

    Raises:
        ValueError: torchvision is not installed, or has no such classifier.
    """
    short = name.removeprefix(PREFIX)
    models = _torchvision_models(name)
    known = [str(known) for known in models.list_models(module=models)]  # classifiers alone
    if short not in known:
        raise ValueError(f"model must be a classifier of torchvision, got {name!r}. Choose among {', '.join(known)}.")
    settings: dict[str, Any] = _WITHOUT_SIDE_OUTPUTS.get(short, {})

    def build(classes: int) -> nn.Module:
        model: nn.Module = models.get_model(short, weights=None, num_classes=classes, **settings)
        return model

    numel = count(lambda: build(OUTPUTS))
    shape = ImageShape(3, _LARGER.get(short, 224))
    return ModelSpec(name, "images", build, OUTPUTS, numel, source="torchvision", image=shape, eval_batch=8)


def _torchvision_models(name: str) -> ModuleType:
    try:
        return importlib.import_module("torchvision.models")
    except ImportError as error:
        raise ValueError(
            f"model must be one of the lab's own where torchvision cannot be imported ({error}), got {name!r}. "
            "Install the torchvision that fits your torch."
        ) from None
