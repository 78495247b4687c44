"""In which precision a model computes: float32, or bfloat16 or float16 where autocast allows it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

PrecisionName = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Run a model under autocast, and scale its loss where gradients would underflow.

    Args:
        name: ``fp32``, ``bf16`` or ``fp16``; float16 alone gets a ``GradScaler``.
        device: of the model.

    Attributes:
        scaler: the ``GradScaler``, or None.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self._dtype, self._device = _DTYPES[name], device
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None

    def run(self, model: Any, inputs: tuple[Tensor, ...]) -> Any:
        """Return what ``model`` makes of ``inputs``, in float32, so that the loss is too."""
        if self._dtype == torch.float32:
            return model(*inputs)
        with torch.autocast(self._device.type, dtype=self._dtype):
            output = model(*inputs)
        return _widened(output)

    @property
    def scale(self) -> float:
        """What the loss is multiplied by."""
        return self.scaler.get_scale() if self.scaler else 1.0

    def scaled(self, loss: Tensor) -> Tensor:
        """Multiply a loss by the scale."""
        return self.scaler.scale(loss) if self.scaler else loss

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the optimizer's gradients by the scale, once a step."""
        if self.scaler:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Let the optimizer take its step unless a gradient is infinite or NaN; returns whether it did.

        Without a scaler it always does.
        """
        if self.scaler is None:
            optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before  # it backs off after a skipped step alone


def _widened(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.is_floating_point() else output
    return tuple(_widened(part) for part in output) if isinstance(output, (tuple, list)) else output
