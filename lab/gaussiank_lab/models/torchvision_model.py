"""Any image classifier of torchvision, where that is installed."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from torch import nn

from gaussiank_lab.data import ImageShape

from .model_spec import ModelSpec, count

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
