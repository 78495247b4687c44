"""Labelled images in memory, fitted to what a model wants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gaussiank_lab.data.split import Batch, Split

MAX_PADDING = 4
"""Pixels by which an image is framed in black rather than stretched: 28 x 28 becomes 32 x 32 so in the paper."""


class ImageShape(NamedTuple):
    """Channels, and height and width, of a model's images."""

    channels: int
    size: int


GREY_28 = ImageShape(1, 28)


@dataclass(frozen=True, eq=False)
class ImageSet(Split):
    """Hold images with their labels.

    Args:
        images: uint8 ``[n, height, width]`` or ``[n, channels, height, width]``.
        labels: int64 ``[n]``.
        classes: name of each label.
        mean: of each channel over the training images, scaled to [0, 1].
        std: deviation of each channel.
        shape: what ``prepare`` makes of them; None leaves them as they are.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    shape: ImageShape | None = None
    unit = "images"

    def __len__(self) -> int:
        return len(self.labels)

    def fitted(self, shape: ImageShape) -> ImageSet:
        """Return the same images for a model that wants ``shape``."""
        return replace(self, shape=shape)

    def batch(self, chosen: Tensor) -> Batch:
        """Collect images uint8 ``[b, channels, height, width]`` and labels int64 ``[b]``."""
        images = self.images[chosen]
        return Batch((images if images.dim() == 4 else images.unsqueeze(1),), (self.labels[chosen],))

    def prepare(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Fit and standardise images: float32 ``[b, channels, size, size]``, as ``shape`` says."""
        return (fit(inputs[0], self.shape, self.mean, self.std),)

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Shift each image by up to four pixels, and mirror one in two."""
        return Batch((shifted(batch.inputs[0], generator),), batch.targets)


def fit(images: Tensor, shape: ImageShape | None, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Standardise images, and give them the channels and size of ``shape``.

    A size up to four pixels larger is reached by a black frame, any other by bilinear resizing. One channel is
    repeated, three are averaged into one.

    Args:
        images: uint8 ``[b, channels, height, width]``. Not modified.
        shape: what to make of them, or None.
        mean: of each channel, scaled to [0, 1].
        std: of each channel.

    Returns:
        float32 ``[b, channels, size, size]``.

    Example:
        >>> images = torch.zeros(5, 1, 28, 28, dtype=torch.uint8)
        >>> fit(images, ImageShape(3, 32), (0.5,), (0.5,))[0, :, 0, 0]
        tensor([-1., -1., -1.])
    """
    values = images.float() / 255
    if shape is not None and shape.size != values.shape[-1]:
        more = shape.size - values.shape[-1]
        if 0 < more <= MAX_PADDING and values.shape[-1] == values.shape[-2]:
            values = functional.pad(values, (more // 2, more - more // 2) * 2)
        else:
            size = (shape.size, shape.size)
            values = functional.interpolate(values, size, mode="bilinear", antialias=True)
    values = (values - _column(mean, values)) / _column(std, values)
    if shape is None or shape.channels == values.shape[1]:
        return values
    return values.mean(1, keepdim=True) if shape.channels == 1 else values.expand(-1, shape.channels, -1, -1)


def _column(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(numbers, device=like.device).view(1, -1, 1, 1)


def shifted(images: Tensor, generator: torch.Generator, most: int = 4) -> Tensor:
    """Shift each image by up to ``most`` pixels each way, filling with black, and mirror one in two.

    Args:
        images: ``[b, channels, height, width]``. Not modified.
        generator: decides; the same state gives the same images.
        most: pixels.

    Source: He et al. 2016, "Deep Residual Learning", section 4.2.
    """
    count, channels, height, width = images.shape
    down, right = torch.randint(0, 2 * most + 1, (2, count, 1), generator=generator)
    rows = down + torch.arange(height)
    columns = right + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    framed = functional.pad(images, (most,) * 4)
    which, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return framed[which, channel, rows[:, None, :, None], columns[:, None, None, :]]
