"""Settings that suit a model: the paper's, and ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gaussiank_lab.models import find_model

Fields = dict[str, Any]
Recipe = Callable[[str], Fields]

_DATASET = {"images": "fashion-mnist-subset", "language": "stdlib", "speech": "synthetic-speech"}
_IMAGENET = {"dataset": "synthetic-images", "batch_size": 8, "steps": 10, "lr": 0.01}

_TEXT = {"batch_size": 4, "steps": 600, "eval_steps": 200}

# What was tried for ResNet-20 and the two small language models stands in docs/training.md.
_OURS: dict[str, Fields] = {
    "resnet20": {"lr": 0.1},
    "transformer": {**_TEXT, "lr": 1.0, "clip_grad": 0.5, "momentum_correction": True},
    "lstm-small": {**_TEXT, "lr": 4.0, "clip_grad": 0.25},
    "lstm-ptb": {"batch_size": 4, "context": 35, "steps": 10, "lr": 4.0, "clip_grad": 0.25},
    "lstm-an4": {"batch_size": 4, "steps": 20, "lr": 0.0002, "clip_grad": 400.0},
}
_PAPER: dict[str, Fields] = {
    "fnn3": {"dataset": "mnist", "batch_size": 128, "lr": 0.01},
    "lenet5": {"dataset": "mnist", "batch_size": 128, "lr": 0.01},
    "resnet20": {"dataset": "cifar10", "batch_size": 32, "lr": 0.1},
    "vgg16": {"dataset": "cifar10", "batch_size": 128, "lr": 0.1},
    "lstm-ptb": {"dataset": "ptb", "batch_size": 20, "lr": 22.0, "clip_grad": 0.25, "context": 35},
    "lstm-an4": {"dataset": "an4", "batch_size": 4, "lr": 0.0002, "clip_grad": 400.0},
    "imagenet": {"dataset": "imagefolder", "batch_size": 128, "lr": 0.01},
}


def default(model: str) -> Fields:
    """Return our settings for a model: data that every machine has, and a training that two cores finish."""
    spec = find_model(model)
    general = _IMAGENET if spec.outputs == 1000 else {}
    return {"model": model, "dataset": _DATASET[spec.task], **general, **_OURS.get(model, {})}


def paper(model: str) -> Fields:
    """Return the paper's settings for a model: its data, batch per worker, learning rate and clipping.

    Density 0.001, momentum 0.9 and selection over the whole model are the same for all. What the paper leaves open
    (epochs, learning rate over steps, augmentation) stays ours.

    Raises:
        ValueError: the paper does not train this model.

    Source: Shi et al. 2019, section 4, table 1. Differs: the norm is clipped on each worker before the exchange.
    """
    spec = find_model(model)
    name = "imagenet" if spec.outputs == 1000 else model
    if name not in _PAPER:
        raise ValueError(f"recipe must be default for {model}, got paper, which does not train it. Leave it out.")
    return {"model": model, "density": 0.001, "momentum": 0.9, "scope": "model", **_PAPER[name]}


OFF_BY_ZERO = ("eval_steps", "clip_grad", "clip_norm", "warmup_steps", "max_bytes")
"""Settings that a recipe or file may hold and the command line must be able to take away: 0 does."""

RECIPES: dict[str, Recipe] = {"default": default, "paper": paper}
"""Name -> function that gives the settings for a model."""


def resolve(recipe: str | None, file: Mapping[str, Any] | None, given: Mapping[str, Any]) -> Fields:
    """Put a run's settings together: of a recipe or a file, then what was given, which wins.

    Number of epochs given alone takes the place of a recipe's or file's number of steps. A 0 given for one of
    ``OFF_BY_ZERO`` takes it away.

    Args:
        recipe: key of ``RECIPES``; None takes ``default`` where no file is given.
        file: settings read from a file, or None.
        given: settings given one by one.

    Raises:
        ValueError: there is no such recipe, it does not know the model, or a file is given as well.

    Example:
        >>> resolve("paper", None, {"model": "resnet20", "lr": 0.05})["lr"]
        0.05
    """
    if recipe is not None and file is not None:
        raise ValueError(f"recipe must be left out with config, got {recipe!r}. Leave one of them out.")
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}. Choose one of them.")
    base = RECIPES[recipe or "default"](given.get("model", "lenet5")) if file is None else dict(file)
    if "epochs" in given and "steps" not in given:
        base["steps"] = None
    off = {name: None for name in OFF_BY_ZERO if given.get(name) == 0}
    return {**base, **given, **off}
