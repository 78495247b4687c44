"""What every data set hands out: batches of examples, by number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gaussiank_lab.tasks import Task


class Batch(NamedTuple):
    """Some examples: what goes into the model, and what should come out."""

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    def to(self, device: torch.device) -> Batch:
        """Return the same examples on a device."""
        return Batch(tuple(t.to(device) for t in self.inputs), tuple(t.to(device) for t in self.targets))


class Split(ABC):
    """Training or test examples, numbered from 0.

    Attributes:
        unit: what they are called, in the plural.
    """

    unit: str = "examples"

    @abstractmethod
    def __len__(self) -> int:
        """Return their number."""

    @abstractmethod
    def batch(self, chosen: Tensor) -> Batch:
        """Collect examples as they are stored.

        Args:
            chosen: int64 ``[b]``, their numbers.
        """

    def prepare(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Turn stored inputs, moved to the model's device, into what the model takes."""
        return inputs

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Change examples at random where this makes sense; it does for images alone.

        Raises:
            ValueError: it does not.
        """
        raise ValueError(f"augment must be off for {self.unit}, got on. Leave it out.")


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, loaded.

    Args:
        task: what a model does with it.
        train: examples to learn from.
        test: examples to be judged by.
        outputs: classes, tokens or characters that a model must tell apart.
        digest: SHA-256 that names the content: of the examples, or for files read later of their names and sizes.
    """

    task: Task
    train: Split
    test: Split
    outputs: int
    digest: str
