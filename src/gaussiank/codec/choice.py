"""The wire for a model: from where its parameters are, and of which dtype."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .wire import WIDE, Wire


def default_wire(parameters: Iterable[Tensor]) -> Wire:
    """Choose ``rice+bf16-rice`` for parameters on a CPU, and else ``chunks+bf16``, which never waits for a device.

    The gradient's dtype makes no difference: what rounding takes off stays in the residual, in float64 too.

    Example:
        >>> str(default_wire([torch.zeros(3)])), str(default_wire([torch.zeros(3, device="meta")]))
        ('rice+bf16-rice', 'chunks+bf16')
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    return Wire("rice", "bf16-rice") if on_cpu else Wire("chunks", "bf16")


def chosen_wire(wire: str | Wire | None, parameters: Iterable[Tensor]) -> Wire:
    """Make the wire that a user has given, by name or not at all.

    Raises:
        ValueError: an unknown name, or float64 values of gradients that are not.

    Example:
        >>> str(chosen_wire("chunks+8bit", [])), str(chosen_wire(None, []))
        ('chunks+8bit', 'rice+bf16-rice')
    """
    held = list(parameters)
    chosen = Wire.parse(wire) if isinstance(wire, str) else wire or default_wire(held)
    if chosen.values == WIDE and any(parameter.dtype != torch.float64 for parameter in held):
        raise ValueError(
            f"wire must carry float32 gradients, got {chosen}. Write {chosen.index}+fp32: it sends float64 ones whole."
        )
    return chosen
