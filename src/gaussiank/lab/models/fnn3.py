"""FNN-3: three fully connected layers."""

from __future__ import annotations

from torch import Tensor, nn

from .model_spec import ModelSpec, standardised


def _build() -> nn.Module:
    layers = [nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)]
    return nn.Sequential(*layers)


def _prepare(images: Tensor) -> Tensor:
    return standardised(images).flatten(1)


FNN3 = ModelSpec("fnn3", _build, _prepare, numel=199_210, source="Shi et al. 2019: 784-200-200-10")
