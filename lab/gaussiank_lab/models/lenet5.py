"""LeNet-5 on 32 x 32 images."""

from __future__ import annotations

from torch import nn

from gaussiank_lab.data import ImageShape

from .model_spec import ModelSpec


def _build(classes: int) -> nn.Module:
    convolutions = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)]
    return nn.Sequential(*convolutions, nn.Flatten(), *head)


LENET5 = ModelSpec(
    "lenet5",
    "images",
    _build,
    outputs=10,
    numel=61_706,
    source="LeCun et al. 1998, with ReLU and max pooling as in today's code",
    image=ImageShape(1, 32),
)
