"""The wire and its budget for a model: from where its parameters are, how many, and of which dtype."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gaussiank.sparse import MAX_NUMEL

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


def entries_of_any_bucket(wire: Wire, max_bytes: int, parameters: Iterable[Tensor]) -> int:
    """Return how many entries fit into ``max_bytes``, wherever they lie and however the parameters are put in buckets.

    That is the number for a vector of all parameters: an index of a shorter one takes no more.

    Raises:
        ValueError: not even one fits.

    Example:
        >>> entries_of_any_bucket(Wire("raw", "fp32"), 20 + 8 * 10, [torch.zeros(500), torch.zeros(600)])
        10
    """
    held = list(parameters)
    wide = any(parameter.dtype == torch.float64 for parameter in held)
    numel = max(1, min(MAX_NUMEL, sum(parameter.numel() for parameter in held)))
    return wire.entries_within(max_bytes, numel, torch.float64 if wide else torch.float32)
