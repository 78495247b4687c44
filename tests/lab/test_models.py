from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from gaussiank.lab.data import fashion_mnist_subset
from gaussiank.lab.models import MODELS


@pytest.mark.parametrize(("name", "numel"), [("fnn3", 199_210), ("lenet5", 61_706), ("resnet20", 269_722)])
def test_parameter_counts_are_those_of_the_paper(name: str, numel: int) -> None:
    assert MODELS[name].numel == numel
    assert sum(parameter.numel() for parameter in MODELS[name].build().parameters()) == numel


@pytest.mark.parametrize(
    ("name", "shape", "place"),
    [
        ("fnn3", (2, 784), (3 * 28 + 20,)),
        ("lenet5", (2, 1, 32, 32), (2 + 3, 2 + 20)),
        ("resnet20", (2, 3, 32, 32), (2 + 3, 2 + 20)),
    ],
)
def test_images_are_standardised_into_the_models_shape(
    name: str, shape: tuple[int, ...], place: tuple[int, ...]
) -> None:
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    images[:, 3, 20] = 255
    expected = torch.full(shape, -0.2860 / 0.3530)
    expected[(..., *place)] = (1 - 0.2860) / 0.3530
    torch.testing.assert_close(MODELS[name].prepare(images), expected)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep small convolutions from waiting at OpenMP barriers: 10-20x slower on two busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "steps"), [("fnn3", 10), ("lenet5", 40), ("resnet20", 6)])
def test_models_learn_a_batch(name: str, steps: int) -> None:
    torch.manual_seed(0)
    spec, (train, _) = MODELS[name], fashion_mnist_subset()
    model = spec.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    inputs, labels = spec.prepare(train.images[:8]), train.labels[:8]
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
