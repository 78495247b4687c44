from __future__ import annotations

import hashlib

import torch

from gaussiank.lab.data import fashion_mnist_subset


def test_subset_is_what_was_released() -> None:
    train, test = fashion_mnist_subset()
    assert train.images.shape == (10_000, 28, 28)
    assert test.images.shape == (2_000, 28, 28)
    assert train.images.dtype == torch.uint8
    assert train.labels.dtype == torch.int64
    digest = hashlib.sha256(train.images.numpy().tobytes() + test.labels.numpy().tobytes()).hexdigest()
    assert digest == "d9d0bad8b1ea8a8c544847b300477f9d23f24e033bb1cc44d4df6c7695e7cae9"


def test_every_class_is_as_frequent() -> None:
    for part, each in zip(fashion_mnist_subset(), (1_000, 200), strict=True):
        assert torch.bincount(part.labels).tolist() == [each] * 10
        assert len(part.classes) == 10
