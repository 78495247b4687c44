"""The models of the paper and a few more, one line each in the table."""

from gaussiank_lab.models.images import ALEXNET, FNN3, INCEPTION_V4, LENET5, RESNET20, RESNET50, VGG16, VGG16_IMAGENET
from gaussiank_lab.models.model_spec import PREFIX, ModelSpec, torchvision_model
from gaussiank_lab.models.text import LSTM_AN4, LSTM_PTB, LSTM_SMALL, TRANSFORMER

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
