from __future__ import annotations

import pytest
import torch
from tests.each import each

from gaussiank_lab.data import ImageSet, ImageShape
from gaussiank_lab.data.image_set import fit, shifted


def ramp(channels: int, side: int) -> torch.Tensor:
    return torch.arange(channels * side * side).remainder(256).to(torch.uint8).view(1, channels, side, side)


def test_each_channel_is_standardised_by_its_own_numbers() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    values = fit(images, None, (0.0, 0.1, 0.5), (1.0, 0.1, 0.25))
    torch.testing.assert_close(values.flatten(), torch.tensor([0.0, 1.0, 2.0]))


def test_a_little_larger_is_a_black_frame() -> None:
    values = fit(ramp(1, 28), ImageShape(1, 32), (0.0,), (1 / 255,))
    assert values.shape == (1, 1, 32, 32)
    torch.testing.assert_close(values[..., 2:30, 2:30], ramp(1, 28).float())
    assert values.sum() == ramp(1, 28).sum()


@each("size", [16, 40])
def test_any_other_size_is_stretched(size: int) -> None:
    images = torch.full((1, 1, 28, 28), 100, dtype=torch.uint8)
    values = fit(images, ImageShape(1, size), (0.0,), (1 / 255,))
    torch.testing.assert_close(values, torch.full((1, 1, size, size), 100.0))


def test_channels_are_repeated_or_averaged() -> None:
    grey = fit(ramp(1, 4), ImageShape(3, 4), (0.0,), (1.0,))
    assert grey.shape == (1, 3, 4, 4)
    assert torch.equal(grey[:, 0], grey[:, 2])
    colours = torch.tensor([30, 60, 90], dtype=torch.uint8).view(1, 3, 1, 1)
    assert fit(colours, ImageShape(1, 1), (0.0,) * 3, (1 / 255,) * 3).item() == pytest.approx(60)


def test_batches_have_channels_and_labels() -> None:
    data = ImageSet(torch.zeros(5, 4, 4, dtype=torch.uint8), torch.arange(5), ("x",), shape=ImageShape(3, 4))
    batch = data.batch(torch.tensor([3, 1]))
    assert batch.inputs[0].shape == (2, 1, 4, 4)
    assert batch.targets[0].tolist() == [3, 1]
    assert data.prepare(batch.inputs)[0].shape == (2, 3, 4, 4)


def test_images_are_shifted_by_four_pixels_at_most_and_one_in_two_is_mirrored(rng: torch.Generator) -> None:
    images = ramp(3, 10).repeat(400, 1, 1, 1)
    moved = shifted(images, rng)
    assert moved.dtype == torch.uint8
    framed = torch.nn.functional.pad(images[0], (4, 4, 4, 4))
    every = {
        cut.flip(2).numpy().tobytes() if mirrored else cut.numpy().tobytes(): (down, right, mirrored)
        for down in range(9)
        for right in range(9)
        for mirrored in (False, True)
        for cut in [framed[:, down : down + 10, right : right + 10].contiguous()]
    }
    found = [every[image.contiguous().numpy().tobytes()] for image in moved]
    assert {down for down, _, _ in found} == {right for _, right, _ in found} == set(range(9))
    assert 150 < sum(mirrored for _, _, mirrored in found) < 250
    assert torch.equal(images, ramp(3, 10).repeat(400, 1, 1, 1))
