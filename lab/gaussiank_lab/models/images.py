"""Models of images: the paper's, each a function that builds it and what the lab knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gaussiank_lab.data import ImageShape
from gaussiank_lab.models.model_spec import ModelSpec


def _fnn3(classes: int) -> nn.Module:
    layers = [nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


FNN3 = ModelSpec(
    "fnn3", "images", _fnn3, 10, 199_210, source="Shi et al. 2019: 784-200-200-10", image=ImageShape(1, 28)
)


def _lenet5(classes: int) -> nn.Module:
    convolutions = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)]
    return nn.Sequential(*convolutions, nn.Flatten(), *head)


LENET5 = ModelSpec(
    "lenet5",
    "images",
    _lenet5,
    outputs=10,
    numel=61_706,
    source="LeCun et al. 1998, with ReLU and max pooling as in today's code",
    image=ImageShape(1, 32),
)


class _ShortcutBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut without parameters: every second pixel, new channels zero."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inward, outward, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outward)
        self.second = nn.Conv2d(outward, outward, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outward)
        self._stride = stride
        self._new_channels = outward - inward

    def forward(self, images: Tensor) -> Tensor:
        out = nn.functional.relu(self.first_norm(self.first(images)))
        out = self.second_norm(self.second(out))
        shortcut = images[:, :, :: self._stride, :: self._stride]
        if self._new_channels:
            half = self._new_channels // 2
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, half, self._new_channels - half))
        return nn.functional.relu(out + shortcut)


def _resnet20(classes: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for inward, outward, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [
            _ShortcutBlock(inward, outward, stride),
            _ShortcutBlock(outward, outward, 1),
            _ShortcutBlock(outward, outward, 1),
        ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


RESNET20 = ModelSpec(
    "resnet20",
    "images",
    _resnet20,
    outputs=10,
    numel=269_722,
    source="He et al. 2016, section 4.2, shortcuts of option A, 3 channels",
    image=ImageShape(3, 32),
)


VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Of the convolutions, 3 x 3 each; every group ends in a max pooling."""


def _vgg16(classes: int) -> nn.Module:
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
    _vgg16,
    outputs=10,
    numel=14_728_266,
    source="Simonyan and Zisserman 2015, configuration D; batch normalisation and one FC as in Shi et al. 2019",
    image=ImageShape(3, 32),
    eval_batch=100,
)


def _alexnet(classes: int) -> nn.Module:
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
    _alexnet,
    outputs=1000,
    numel=61_100_840,
    source="Krizhevsky 2014, 'One weird trick for parallelizing convolutional neural networks'",
    image=ImageShape(3, 224),
    eval_batch=16,
)


def _vgg16_imagenet(classes: int) -> nn.Module:
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
    _vgg16_imagenet,
    outputs=1000,
    numel=138_357_544,
    source="Simonyan and Zisserman 2015, configuration D",
    image=ImageShape(3, 224),
    eval_batch=8,
)


def _convolution(inward: int, outward: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(inward, outward, kernel, stride, padding=kernel // 2, bias=False)
    return [layer, nn.BatchNorm2d(outward)]


class _Bottleneck(nn.Module):
    """Narrow, convolve, widen; around it a shortcut, projected where the shape changes."""

    def __init__(self, inward: int, width: int, stride: int) -> None:
        super().__init__()
        outward = 4 * width
        narrow, middle = _convolution(inward, width, 1), _convolution(width, width, 3, stride)
        self.branch = nn.Sequential(*narrow, nn.ReLU(), *middle, nn.ReLU(), *_convolution(width, outward, 1))
        changes = stride > 1 or inward != outward
        self.shortcut = nn.Sequential(*(_convolution(inward, outward, 1, stride) if changes else []))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.relu(self.branch(images) + self.shortcut(images))


def _resnet50(classes: int) -> nn.Module:
    layers = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    inward = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(_Bottleneck(inward, width, stride if block == 0 else 1))
            inward = 4 * width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


RESNET50 = ModelSpec(
    "resnet50",
    "images",
    _resnet50,
    outputs=1000,
    numel=25_557_032,
    source="He et al. 2016, table 1; the stride is in the 3 x 3 convolution, as in today's code",
    image=ImageShape(3, 224),
    eval_batch=8,
)


# A step of a branch is (outward channels, kernel, stride, padding), a pooling, or a list of branches side by side.
_POOL = "max"
_MEAN = "mean"


def _step(outward: int, kernel: int | tuple[int, int] = 1, stride: int = 1, pad: bool = True) -> tuple[Any, ...]:
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    return outward, (high, wide), stride, (high // 2, wide // 2) if pad else (0, 0)


def _shrink(outward: int) -> tuple[Any, ...]:
    return _step(outward, 3, stride=2, pad=False)


_ROW, _COLUMN = (1, 7), (7, 1)
_STEM: list[Any] = [
    *(_shrink(32), _step(32, 3, pad=False), _step(64, 3)),
    [[_POOL], [_shrink(96)]],
    [
        [_step(64), _step(96, 3, pad=False)],
        [_step(64), _step(64, _ROW), _step(64, _COLUMN), _step(96, 3, pad=False)],
    ],
    [[_shrink(192)], [_POOL]],
]
_A: list[Any] = [[_step(96)], [_step(64), _step(96, 3)], [_step(64), _step(96, 3), _step(96, 3)], [_MEAN, _step(96)]]
_REDUCE_A: list[Any] = [[_shrink(384)], [_step(192), _step(224, 3), _shrink(256)], [_POOL]]
_B: list[Any] = [
    [_step(384)],
    [_step(192), _step(224, _ROW), _step(256, _COLUMN)],
    [_step(192), _step(192, _COLUMN), _step(224, _ROW), _step(224, _COLUMN), _step(256, _ROW)],
    [_MEAN, _step(128)],
]
_REDUCE_B: list[Any] = [
    [_step(192), _shrink(192)],
    [_step(256), _step(256, _ROW), _step(320, _COLUMN), _shrink(320)],
    [_POOL],
]
_BOTH_WAYS: list[Any] = [[_step(256, (1, 3))], [_step(256, (3, 1))]]
_C: list[Any] = [
    [_step(256)],
    [_step(384), _BOTH_WAYS],
    [_step(384), _step(448, (3, 1)), _step(512, (1, 3)), _BOTH_WAYS],
    [_MEAN, _step(256)],
]


class _Branches(nn.Module):
    """Give the same images to several branches, and put their channels side by side."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([branch(images) for branch in self.branches], 1)


def _chain(inward: int, steps: list[Any]) -> tuple[nn.Module, int]:
    """Build the steps of a list one after the other; returns them and the channels that come out."""
    layers: list[nn.Module] = []
    for step in steps:
        if step == _POOL:
            layers.append(nn.MaxPool2d(3, 2))
        elif step == _MEAN:
            layers.append(nn.AvgPool2d(3, 1, padding=1, count_include_pad=False))
        elif isinstance(step, list):
            branches, channels = zip(*(_chain(inward, branch) for branch in step), strict=True)
            layers.append(_Branches(branches))
            inward = sum(channels)
        else:
            outward, kernel, stride, padding = step
            layer = nn.Conv2d(inward, outward, kernel, stride, padding, bias=False)
            layers += [layer, nn.BatchNorm2d(outward, eps=1e-3), nn.ReLU()]
            inward = outward
    return nn.Sequential(*layers), inward


def _inception_v4(classes: int) -> nn.Module:
    body, channels = _chain(3, [*_STEM, *[_A] * 4, _REDUCE_A, *[_B] * 7, _REDUCE_B, *[_C] * 3])
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes)]
    return nn.Sequential(body, *head)


INCEPTION_V4 = ModelSpec(
    "inception-v4",
    "images",
    _inception_v4,
    outputs=1000,
    numel=42_679_816,
    source="Szegedy et al. 2017, 'Inception-v4, Inception-ResNet and ...', figures 3 to 9",
    image=ImageShape(3, 299),
    eval_batch=8,
)
