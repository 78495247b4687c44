"""How each model is trained at each scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gaussiank_lab.reproduce.recipe import Scale
from gaussiank_lab.train.config import TrainConfig, paper

PAPER_MODELS = ("fnn3", "lenet5", "resnet20", "vgg16", "lstm-ptb", "lstm-an4")
"""The models whose gradients the paper shows."""


class RecipeSetting(NamedTuple):
    """How a model is trained at scale full and at scale small.

    Attributes:
        small: changes of ``TrainConfig`` at scale small; another ``model`` there stands in for the paper's.
        epochs: at scale full; all else there is the paper's (``lab.recipes.paper``).
    """

    small: dict[str, Any]
    epochs: int


_FEW = {"workers": 2, "batch_size": 4}

SETTINGS: dict[str, RecipeSetting] = {
    "fnn3": RecipeSetting({"lr": 0.01, "steps": 400, "workers": 4}, 100),
    "lenet5": RecipeSetting({"lr": 0.01, "steps": 400, "workers": 4}, 100),
    "resnet20": RecipeSetting({"lr": 0.1, "steps": 100, "eval_steps": 25, "workers": 2}, 140),
    "vgg16": RecipeSetting({"lr": 0.02, "steps": 20, **_FEW}, 140),
    "lstm-ptb": RecipeSetting(
        {**_FEW, "model": "lstm-small", "dataset": "stdlib", "lr": 4.0, "clip_grad": 0.25, "context": 35, "steps": 200},
        40,
    ),
    "lstm-an4": RecipeSetting({**_FEW, "dataset": "synthetic-speech", "lr": 2e-4, "clip_grad": 400.0, "steps": 20}, 80),
}
"""Model of the paper -> setting. Learning rates at scale small are the paper's, or those of ``lab.recipes.default``."""

MAIN_MODELS = ("fnn3", "lenet5", "resnet20")
"""The models whose accuracy is compared; gradients are recorded of all."""

SEEDS = {"tiny": (0,), "small": (0, 1, 2), "full": (0, 1, 2)}
TINY_STEPS = 6
STAND_IN = "The package's Fashion-MNIST subset (10,000 training images) stands in for MNIST and CIFAR-10"
STAND_INS = {
    "vgg16": "the paper's model, but 2 workers, batch 4 and 20 steps alone: gradients of the very beginning",
    "lstm-ptb": "lstm-small (2 layers of 200 on bytes of Python's standard library, 745,856 parameters) stands in for "
    "it and its 2 layers of 1,500 on the words of PTB",
    "lstm-an4": "the paper's model on synthetic spectrograms in place of AN4, 2 workers and 20 steps alone",
}


def models(scale: Scale, wanted: tuple[str, ...] = MAIN_MODELS) -> tuple[str, ...]:
    """Return the models that a recipe trains: all wanted ones, the first alone at scale tiny."""
    return wanted[:1] if scale == "tiny" else wanted


def config(model: str, scale: Scale, methods: tuple[str, ...], **changes: Any) -> TrainConfig:
    """Return the settings of one training run: whole-model selection and optimizer momentum 0.9, as in the paper.

    Args:
        model: of the paper; at scale small ``lstm-ptb`` gives settings of the model that stands in for it.
        scale: how large.
        methods: to compare.
        changes: fields of ``TrainConfig`` that differ.
    """
    settings: dict[str, Any] = {"model": model, "methods": methods, "scope": "model", "momentum": 0.9}
    if scale == "full":
        settings |= paper(model) | {"epochs": SETTINGS[model].epochs, "workers": 16, "device": "cuda"}
    else:
        settings |= SETTINGS[model].small
        if scale == "tiny":
            settings |= {"steps": TINY_STEPS, "workers": 2, "batch_size": 8}
    return TrainConfig(**{**settings, **changes})


def standins(scale: Scale, trained: Sequence[str]) -> str:
    """Say what stood in for what, and which models of the paper were not trained.

    Args:
        scale: how large.
        trained: models that were, those that stand in for others among them.
    """
    names = {setting.small.get("model", name): name for name, setting in SETTINGS.items()}
    here = [names.get(model, model) for model in trained]
    parts = [STAND_IN] if scale != "full" else []
    if scale == "small":
        parts += [f"{name}: {STAND_INS[name]}" for name in here if name in STAND_INS]
        steps = ", ".join(f"{name} {SETTINGS[name].small['steps']}" for name in here)
        parts += [f"steps, unless the page varies them: {steps}, an early stage of what the paper trains"]
    missing = [name for name in PAPER_MODELS if name not in here]
    parts += [f"not trained here: {', '.join(missing)}"] if missing else []
    return "; ".join(parts) + "." if parts else ""
