"""The models of the paper and a few more: one file each, one line each in the table."""

from .alexnet import ALEXNET
from .fnn3 import FNN3
from .inception_v4 import INCEPTION_V4
from .lenet5 import LENET5
from .lstm_an4 import LSTM_AN4
from .lstm_ptb import LSTM_PTB
from .lstm_small import LSTM_SMALL
from .model_spec import ModelSpec
from .resnet20 import RESNET20
from .resnet50 import RESNET50
from .torchvision_model import PREFIX, torchvision_model
from .transformer import TRANSFORMER
from .vgg16 import VGG16
from .vgg16_imagenet import VGG16_IMAGENET

_IMAGES = (FNN3, LENET5, RESNET20, VGG16, ALEXNET, VGG16_IMAGENET, RESNET50, INCEPTION_V4)
_LANGUAGE = (TRANSFORMER, LSTM_SMALL, LSTM_PTB)
_SPEECH = (LSTM_AN4,)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in (*_IMAGES, *_LANGUAGE, *_SPEECH)}
"""Name -> model."""


def find_model(name: str) -> ModelSpec:
    """Return the model of a name: one of the table, or ``torchvision:NAME``.

    Raises:
        ValueError: there is none.

    Example:
        >>> find_model("lenet5").numel
        61706
    """
    if name in MODELS:
        return MODELS[name]
    if name.startswith(PREFIX):
        return torchvision_model(name)
    raise ValueError(f"model must be one of {', '.join(MODELS)} or {PREFIX}NAME, got {name!r}. Correct it.")


__all__ = ["MODELS", "ModelSpec", "find_model"]
