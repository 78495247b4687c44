"""What the lab knows of a model, and how images become its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

FASHION_MEAN, FASHION_STD = 0.2860, 0.3530  # of the 60,000 training images, scaled to [0, 1]


@dataclass(frozen=True)
class ModelSpec:
    """Describe a model of the lab.

    Args:
        name: its key in ``MODELS``.
        build: makes a new one, with torch's global generator.
        prepare: uint8 images ``[b, 28, 28]`` -> its float32 input.
        numel: number of parameters, as the paper counts them.
        source: where its shape comes from.
    """

    name: str
    build: Callable[[], nn.Module]
    prepare: Callable[[Tensor], Tensor]
    numel: int
    source: str


def standardised(images: Tensor) -> Tensor:
    """Scale uint8 images to mean 0 and deviation 1, over Fashion-MNIST.

    Example:
        >>> import torch
        >>> standardised(torch.tensor([[[0, 255]]], dtype=torch.uint8))
        tensor([[[-0.8102,  2.0227]]])
    """
    return (images.float() / 255 - FASHION_MEAN) / FASHION_STD


def padded(images: Tensor, channels: int) -> Tensor:
    """Standardise 28 x 28 images, pad them with black to 32 x 32 and repeat them on ``channels`` channels.

    Example:
        >>> import torch
        >>> padded(torch.zeros(5, 28, 28, dtype=torch.uint8), channels=3).shape
        torch.Size([5, 3, 32, 32])
    """
    return standardised(nn.functional.pad(images, (2, 2, 2, 2))).unsqueeze(1).expand(-1, channels, -1, -1)
