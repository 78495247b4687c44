"""Each kernel is an op of torch that says what it writes: one launch, which torch's own tools can count and check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("gaussiank", "DEF")


def op(schema: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function that launches one kernel, under ``torch.ops.gaussiank``.

    Args:
        schema: name and arguments, as torch writes them; what is written is marked ``(a!)``. On the CPU, Triton's
            interpreter runs.
    """

    def register(launch: Callable[..., None]) -> Callable[..., None]:
        name = schema.partition("(")[0]

        def on_its_device(*arguments: Any) -> None:
            with torch.cuda.device(arguments[0].device):  # Triton launches on the current one
                launch(*arguments)

        _LIBRARY.define(f"{schema} -> ()")
        _LIBRARY.impl(name, on_its_device, "CUDA")
        _LIBRARY.impl(name, launch, "CPU")
        _LIBRARY.impl(name, _nothing, "Meta")
        found: Callable[..., None] = getattr(torch.ops.gaussiank, name).default
        return found

    return register


def _nothing(*arguments: Any) -> None:
    """Compute nothing, of tensors without memory."""
