"""How each model is trained at each scale."""

from __future__ import annotations

from typing import Any, NamedTuple

from gaussiank.lab.config import TrainConfig
from gaussiank.lab.models import MODELS
from gaussiank.lab.reproduce.recipe import Scale

PAPER_MODELS = ("fnn3", "lenet5", "resnet20", "vgg16", "lstm-ptb", "lstm-an4")
"""The models whose gradients the paper shows."""


class Setting(NamedTuple):
    """Learning rate of the paper, and steps at scale small."""

    lr: float
    small_steps: int
    small_workers: int
    full_dataset: str
    full_batch: int
    full_epochs: int


SETTINGS: dict[str, Setting] = {
    "fnn3": Setting(0.01, 400, 4, "mnist", 128, 100),
    "lenet5": Setting(0.01, 400, 4, "mnist", 128, 100),
    "resnet20": Setting(0.1, 100, 2, "cifar10", 32, 140),
}
"""Model -> setting, for the models that scale small trains. Learning rates and batches are the paper's."""

SEEDS = {"tiny": (0,), "small": (0, 1, 2), "full": (0, 1, 2)}
TINY_STEPS = 6
STAND_IN = "The package's Fashion-MNIST subset (10,000 training images) stands in for MNIST and CIFAR-10"


def models(scale: Scale, wanted: tuple[str, ...] = ("fnn3", "lenet5", "resnet20")) -> tuple[str, ...]:
    """Return the models that a recipe trains: all wanted ones, the first alone at scale tiny."""
    known = tuple(name for name in wanted if name in MODELS and name in SETTINGS)
    return known[:1] if scale == "tiny" else known


def config(model: str, scale: Scale, methods: tuple[str, ...], **changes: Any) -> TrainConfig:
    """Return the settings of one training run: whole-model selection and optimizer momentum 0.9, as in the paper.

    Raises:
        ValueError: the data of scale full are not known here.
    """
    setting = SETTINGS[model]
    settings: dict[str, Any] = {"model": model, "methods": methods, "lr": setting.lr, "scope": "model", "momentum": 0.9}
    if scale == "full":
        settings |= {"dataset": setting.full_dataset, "batch_size": setting.full_batch, "workers": 16}
        settings |= {"epochs": setting.full_epochs, "device": "cuda"}
    elif scale == "small":
        settings |= {"steps": setting.small_steps, "workers": setting.small_workers}
    else:
        settings |= {"steps": TINY_STEPS, "workers": 2, "batch_size": 8}
    return TrainConfig(**{**settings, **changes})


def standins(scale: Scale, wanted: tuple[str, ...] = PAPER_MODELS) -> str:
    """Say what stood in for what, and which models of the paper were not trained."""
    missing = [name for name in wanted if name not in models(scale, wanted)]
    parts = [STAND_IN] if scale != "full" else []
    parts += [f"not trained here: {', '.join(missing)}"] if missing else []
    return "; ".join(parts) + "." if parts else ""
