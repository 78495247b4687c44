"""Running statistics of norm layers: their mean over workers, once in every turn of all fragments."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gaussiank.comm import Done, Executor


class RunningStatistics:
    """Average what batch norm layers have counted; other buffers stay each worker's own.

    Args:
        module: whose layers.

    Attributes:
        mean: ``[numel + 1]`` sums over workers and their count, over the world size, once they have arrived; else what
            is on its way, or None.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = [layer for layer in module.modules() if isinstance(layer, _NormBase)]
        self.mean: Tensor | None = None
        self._under_way: Done | None = None

    @property
    def _buffers(self) -> list[Tensor]:
        return [
            buffer for layer in self._layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None
        ]

    def send(self, executor: Executor, step: int, *, left_out: bool) -> None:
        """Start the mean; ``left_out``: without this worker's."""
        buffers = self._buffers
        if not buffers:
            return
        wide = torch.float64 if any(one.dtype == torch.float64 for one in buffers) else torch.float32
        one = torch.ones(1, dtype=wide, device=buffers[0].device)
        self.mean = torch.cat([*(buffer.flatten().to(one) for buffer in buffers), one])
        if left_out:
            self.mean.zero_()
        label = f"the running statistics of step {step}"
        self._under_way = executor.average(lambda: label, self.mean, lambda _: None)

    def arrive(self) -> None:
        """Wait for the mean."""
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None

    def land(self) -> None:
        """Overwrite the statistics by their mean."""
        self.arrive()
        mean, self.mean = self.mean, None
        if mean is None or not mean[-1]:
            return
        mean = mean[:-1] / mean[-1]
        buffers = self._buffers
        for buffer, part in zip(buffers, mean.split([one.numel() for one in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))
