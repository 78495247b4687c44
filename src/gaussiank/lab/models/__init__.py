"""The models of the paper: one file each, one line each in the table."""

from .fnn3 import FNN3
from .lenet5 import LENET5
from .model_spec import ModelSpec
from .resnet20 import RESNET20

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in (FNN3, LENET5, RESNET20)}
"""Name -> model."""

__all__ = ["MODELS", "ModelSpec"]
