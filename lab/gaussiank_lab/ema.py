"""A moving average of the weights, judged beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Keep ``average = decay average + (1 - decay) weight`` for every parameter of a model.

    Args:
        model: whose weights are averaged; the average starts from them.
        decay: in (0, 1); a larger one remembers longer.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 1.0)
        >>> average = WeightAverage(model, decay=0.5)
        >>> _ = nn.init.constant_(model.weight, 3.0)
        >>> average.update()
        >>> with average.in_place():
        ...     model.weight.item()
        2.0
        >>> model.weight.item()
        3.0
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self._decay = decay
        self._averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of a step."""
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name], 1 - self._decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the average as its weights for a while."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by parameter."""
        return dict(self._averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from saved averages."""
        for name, average in self._averages.items():
            average.copy_(state[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self._averages.items():
            weight = self._parameters[name]
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
