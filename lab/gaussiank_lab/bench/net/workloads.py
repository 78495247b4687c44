"""What is trained in the network lab: any model of the lab, a smaller AlexNet, or a bare vector without a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from gaussiank.sparse import MAX_NUMEL
from gaussiank_lab.models import MODELS, find_model

SMALL_ALEXNET = "alexnet-small"
VECTOR = "vector:"
_WIDTH = 0.625


@dataclass(frozen=True)
class Workload:
    """A model by name, or a vector.

    Attributes:
        name: as the user wrote it.
        like: model of the lab whose data and settings it trains with; empty for a vector.
        build: makes the model for a number of outputs; None for the model of ``like``.
        numel: entries of a vector; 0 for a model.
    """

    name: str
    like: str = ""
    build: Callable[[int], nn.Module] | None = None
    numel: int = 0


def parse_workload(text: str) -> Workload:
    """Read a workload: a model's name, ``alexnet-small``, or ``vector:N``, the exchange alone of N random entries.

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_workload("vector:1e7").numel, parse_workload("alexnet-small").like
        (10000000, 'alexnet')
    """
    name = text.strip()
    if name == SMALL_ALEXNET:
        return Workload(name, "alexnet", small_alexnet)
    if name.startswith(VECTOR):
        try:
            numel = int(float(name.removeprefix(VECTOR)))
        except (ValueError, OverflowError):
            numel = 0
        if not 1000 <= numel <= MAX_NUMEL:
            raise ValueError(f"models must give a vector 1000 to {MAX_NUMEL} entries, got {text!r}. Write vector:1e7.")
        return Workload(name, numel=numel)
    try:
        return Workload(name, find_model(name).name)
    except ValueError:
        known = ", ".join((*MODELS, SMALL_ALEXNET, f"{VECTOR}N"))
        raise ValueError(f"models must be among {known}, got {text!r}. Correct it.") from None


def small_alexnet(classes: int) -> nn.Module:
    """Make AlexNet with 5/8 of its width: 24.8M parameters, 96 % of them in the fully connected layers.

    Example:
        >>> from gaussiank_lab.models.model_spec import count
        >>> count(lambda: small_alexnet(1000))
        24835760
    """
    sizes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
    pooled = (True, True, False, False, True)
    layers: list[nn.Module] = []
    for (inside, outside, kernel, stride, padding), pool in zip(sizes, pooled, strict=True):
        narrow = inside if inside == 3 else round(_WIDTH * inside)
        layers += [nn.Conv2d(narrow, round(_WIDTH * outside), kernel, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] * pool
    width = round(_WIDTH * 4096)
    head = [nn.Dropout(), nn.Linear(round(_WIDTH * 256) * 36, width), nn.ReLU(), nn.Dropout()]
    head += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(width, classes))
