"""What a model is trained for: the loss of a batch, and what the test set is judged by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from gaussiank_lab.metric import ACCURACY, Metric

TaskName = Literal["images", "language", "speech"]

Targets = tuple[Tensor, ...]


class Task(ABC):
    """Judge what a model says about a batch.

    Attributes:
        name: which models and data sets belong together.
        metric: what a run is judged by.
    """

    name: TaskName
    metric: Metric

    @abstractmethod
    def loss(self, output: Any, targets: Targets) -> Tensor:
        """Return the mean loss of a batch, a scalar with a gradient."""

    @abstractmethod
    def score(self, output: Any, targets: Targets) -> Tensor:
        """Return float64 ``[4]``: sum and count of the loss, sum and count of the metric. They add up over batches."""

    def evaluation(self, sums: Tensor) -> dict[str, float]:
        """Turn the added scores of a test set into the values of its record."""
        loss_sum, loss_count, metric_sum, metric_count = sums.tolist()
        return {"loss": loss_sum / loss_count, self.metric.key: metric_sum / metric_count}


class ImageClassification(Task):
    """One label for each image.

    Output: float ``[b, classes]``. Targets: labels int64 ``[b]``.

    Example:
        >>> labels = torch.tensor([0, 1])
        >>> ImageClassification().score(torch.tensor([[5.0, -5.0], [5.0, -5.0]]), (labels,))[2:]
        tensor([1., 2.], dtype=torch.float64)
    """

    name: TaskName = "images"
    metric = ACCURACY

    def loss(self, output: Any, targets: Targets) -> Tensor:
        """Return the mean cross entropy."""
        return functional.cross_entropy(output, targets[0])

    def score(self, output: Any, targets: Targets) -> Tensor:
        """Count right answers."""
        loss = functional.cross_entropy(output, targets[0], reduction="sum")
        correct = (output.argmax(1) == targets[0]).sum()
        return _sums(loss, targets[0].numel(), correct, targets[0].numel())


class LanguageModelling(Task):
    """The next token at every place.

    Output: float ``[b, context, vocabulary]``. Targets: int64 ``[b, context]``.

    Args:
        token: what one is called: byte or word.

    Example:
        >>> LanguageModelling("byte").metric.unit
        'nats/byte'
    """

    name: TaskName = "language"

    def __init__(self, token: str) -> None:
        self.metric = Metric(
            "loss",
            "loss",
            f"nats/{token}",
            f"Mean surprise at the next {token} of the test set after the last step, in nats: less is better, "
            "and its exponential is the perplexity.",
        )

    def loss(self, output: Any, targets: Targets) -> Tensor:
        """Return the mean cross entropy in nats a token."""
        return functional.cross_entropy(output.flatten(0, 1), targets[0].flatten())

    def score(self, output: Any, targets: Targets) -> Tensor:
        """Sum the cross entropy; the metric is the loss itself."""
        loss = functional.cross_entropy(output.flatten(0, 1), targets[0].flatten(), reduction="sum")
        return _sums(loss, targets[0].numel(), loss, targets[0].numel())

    def evaluation(self, sums: Tensor) -> dict[str, float]:
        """Add the perplexity."""
        values = super().evaluation(sums)
        loss = values["loss"]
        return {**values, "perplexity": math.exp(loss) if loss < 700 else math.inf}


class SpeechRecognition(Task):
    """The characters of an utterance, without knowing where each is spoken (CTC).

    Output: log-probabilities ``[frames, b, characters]`` with the blank first, and frames int64 ``[b]``. Targets:
    characters int64 ``[b, longest]``, padded, and their numbers int64 ``[b]``. The loss is in nats an utterance; an
    utterance with too few frames for its characters has an infinite one.

    Source: Graves et al. 2006, "Connectionist Temporal Classification".
    """

    name: TaskName = "speech"
    metric = Metric(
        "error_rate",
        "errors",
        "%",
        "Edits that turn the characters heard into those spoken, over the characters spoken, on the test set after the "
        "last step: less is better. Each frame's likeliest character is taken.",
        scale=100.0,
        decimals=1,
    )

    def loss(self, output: Any, targets: Targets) -> Tensor:
        """Return the mean CTC loss in nats an utterance."""
        return self._ctc(output, targets) / targets[1].numel()

    def score(self, output: Any, targets: Targets) -> Tensor:
        """Count edits between characters heard and spoken."""
        best = output[0].argmax(2).T.tolist()
        edits = 0
        for row, frames, spoken, length in zip(best, output[1].tolist(), *(t.tolist() for t in targets), strict=True):
            heard = [character for character, _ in groupby(row[:frames]) if character]
            edits += edit_distance(heard, spoken[:length])
        return _sums(self._ctc(output, targets), targets[1].numel(), edits, int(targets[1].sum()))

    @staticmethod
    def _ctc(output: Any, targets: Targets) -> Tensor:
        return functional.ctc_loss(output[0], targets[0], output[1], targets[1], reduction="sum")


def edit_distance(first: list[int], second: list[int]) -> int:
    """Count the insertions, deletions and replacements that turn one sequence into the other, at least.

    Example:
        >>> edit_distance([1, 2, 3], [2, 3, 4])
        2
    """
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            corner, row[j] = row[j], min(corner + (one != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def _sums(loss: Tensor, count: int, metric: Tensor | int, metric_count: int) -> Tensor:
    return torch.tensor([loss.item(), count, float(metric), metric_count], dtype=torch.float64)
