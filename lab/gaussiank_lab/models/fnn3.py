"""FNN-3: three fully connected layers."""

from __future__ import annotations

from torch import nn

from gaussiank_lab.data import ImageShape

from .model_spec import ModelSpec


def _build(classes: int) -> nn.Module:
    layers = [nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


FNN3 = ModelSpec(
    "fnn3", "images", _build, 10, 199_210, source="Shi et al. 2019: 784-200-200-10", image=ImageShape(1, 28)
)
