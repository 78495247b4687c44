"""VGG-16 in its CIFAR form: batch normalisation, and one fully connected layer."""

from __future__ import annotations

from torch import nn

from gaussiank_lab.data import ImageShape

from .model_spec import ModelSpec

VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Of the convolutions, 3 x 3 each; every group ends in a max pooling."""


def _build(classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    inward = 3
    for group in VGG16_CHANNELS:
        for outward in group:
            layers += [nn.Conv2d(inward, outward, 3, padding=1), nn.BatchNorm2d(outward), nn.ReLU()]
            inward = outward
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, classes))


VGG16 = ModelSpec(
    "vgg16",
    "images",
    _build,
    outputs=10,
    numel=14_728_266,
    source="Simonyan and Zisserman 2015, configuration D; batch normalisation and one FC as in Shi et al. 2019",
    image=ImageShape(3, 32),
    eval_batch=100,
)
