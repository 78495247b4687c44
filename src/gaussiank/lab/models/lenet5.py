"""LeNet-5 on 32 x 32 images."""

from __future__ import annotations

from torch import Tensor, nn

from .model_spec import ModelSpec, padded


def _build() -> nn.Module:
    convolutions = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*convolutions, nn.Flatten(), *head)


def _prepare(images: Tensor) -> Tensor:
    return padded(images, channels=1)


LENET5 = ModelSpec(
    "lenet5", _build, _prepare, numel=61_706, source="LeCun et al. 1998, with ReLU and max pooling as in today's code"
)
