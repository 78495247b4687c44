"""Copies and pickles: a copy of a compressed model is a plain DDP model, and what was its compression says so."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from gaussiank.compression import listed, texts


class CopiedCompression:
    """Stand where a ``Compression`` stood in a copy or a pickle: its settings as text, without residuals or exchange.

    DDP makes the reducer of a copy anew, without the hook. So a copy (``copy.deepcopy``, ``torch.save`` of a whole
    model, ``AveragedModel``) averages dense gradients until ``compress`` is called on it; a warning says so when it is
    trained. ``state_dict`` is what saves residuals.

    Args:
        config: setting -> its text.
        step: at which the copy was made.
        parameter: one of the copied model's; a gradient that it gets shows that the copy is trained. None: no look.

    Attributes:
        config: setting -> its text.
        step: at which the copy was made.
    """

    def __init__(self, config: Mapping[str, str], step: int, parameter: Parameter | None = None) -> None:
        self.config, self.step, self._parameter = dict(config), step, parameter
        if parameter is not None and parameter.requires_grad:
            own = weakref.ref(self)
            self._handle = parameter.register_post_accumulate_grad_hook(lambda _: _warn(own))

    def __reduce__(self) -> tuple[Any, ...]:
        return CopiedCompression, (self.config, self.step, self._parameter)

    def __repr__(self) -> str:
        return f"CopiedCompression({listed(self.config)}, step={self.step}, without exchange)"


def _warn(copied: weakref.ReferenceType[CopiedCompression]) -> None:
    alive = copied()
    if alive is None:  # the copy has been compressed
        return
    alive._handle.remove()
    warnings.warn(
        "a copy of a compressed model is trained, and averages dense gradients: DDP makes the reducer of a copy anew, "
        "without the hook. Call gaussiank.compress on the copy to compress it too.",
        stacklevel=2,
    )


def copy_of(config: Mapping[str, object], step: int, model: DistributedDataParallel | None) -> tuple[Any, ...]:
    """Return what ``__reduce__`` of a compression returns: how to make a ``CopiedCompression`` of it.

    Args:
        config: its settings and ``model parameters``, name -> numel.
        step: of the compression.
        model: that it compresses, if it is alive. Its smallest parameter goes with the copy.
    """
    trained = [one for one in model.parameters() if one.requires_grad] if model is not None else []
    return CopiedCompression, (texts(config), step, min(trained, key=Tensor.numel, default=None))


def drop_copies(model: DistributedDataParallel) -> None:
    """Forget that a model is a copy."""
    if hooks := getattr(model, "_comm_hooks", None):
        hooks[:] = [(hook, state) for hook, state in hooks if not isinstance(state, CopiedCompression)]
