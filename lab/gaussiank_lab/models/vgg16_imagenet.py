"""VGG-16 as published for ImageNet: no normalisation, three fully connected layers."""

from __future__ import annotations

from torch import nn

from gaussiank_lab.data import ImageShape

from .model_spec import ModelSpec
from .vgg16 import VGG16_CHANNELS


def _build(classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    inward = 3
    for group in VGG16_CHANNELS:
        for outward in group:
            layers += [nn.Conv2d(inward, outward, 3, padding=1), nn.ReLU()]
            inward = outward
        layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(4096, classes))


VGG16_IMAGENET = ModelSpec(
    "vgg16-imagenet",
    "images",
    _build,
    outputs=1000,
    numel=138_357_544,
    source="Simonyan and Zisserman 2015, configuration D",
    image=ImageShape(3, 224),
    eval_batch=8,
)
