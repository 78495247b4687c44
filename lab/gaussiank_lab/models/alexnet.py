"""AlexNet for ImageNet, in the form for one device."""

from __future__ import annotations

from torch import nn

from gaussiank_lab.data import ImageShape

from .model_spec import ModelSpec


def _build(classes: int) -> nn.Module:
    convolutions = [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    ]
    head = [nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), *head, nn.Linear(4096, classes))


ALEXNET = ModelSpec(
    "alexnet",
    "images",
    _build,
    outputs=1000,
    numel=61_100_840,
    source="Krizhevsky 2014, 'One weird trick for parallelizing convolutional neural networks'",
    image=ImageShape(3, 224),
    eval_batch=16,
)
