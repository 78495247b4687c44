"""Inception-V4 for ImageNet, as a list of branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gaussiank_lab.data import ImageShape

from .model_spec import ModelSpec

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


def _build(classes: int) -> nn.Module:
    body, channels = _chain(3, [*_STEM, *[_A] * 4, _REDUCE_A, *[_B] * 7, _REDUCE_B, *[_C] * 3])
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes)]
    return nn.Sequential(body, *head)


INCEPTION_V4 = ModelSpec(
    "inception-v4",
    "images",
    _build,
    outputs=1000,
    numel=42_679_816,
    source="Szegedy et al. 2017, 'Inception-v4, Inception-ResNet and ...', figures 3 to 9",
    image=ImageShape(3, 299),
    eval_batch=8,
)
