"""Accelerate: compress a prepared model; residuals go with ``save_state`` and ``load_state``, every worker's own."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gaussiank.compression import Compression
from gaussiank.ddp import is_sharded
from gaussiank.doors import compress as compress_model

from . import FOLDER, load_beside, require_version

require_version("accelerate", "1.1")

from accelerate import Accelerator  # noqa: E402  only once it is known to be there

_COUNTS: weakref.WeakKeyDictionary[Accelerator, int] = weakref.WeakKeyDictionary()


def compress(accelerator: Accelerator, model: nn.Module, *density: Any, **settings: Any) -> Compression:
    """Compress a model that ``accelerator.prepare`` has wrapped, and save its residuals with the accelerator's state.

    Call it on every worker, once for each model, before ``accelerator.load_state``. Residuals lie in a folder
    ``gaussiank`` of the accelerator's checkpoint, a file for each worker. (``register_for_checkpointing`` would keep
    rank 0's for all.) Clip with ``clip_norm``, not with ``accelerator.clip_grad_norm_``, which clips the mean.

    Args:
        accelerator: that has prepared the model.
        model: what ``prepare`` returned.
        *density: as for ``gaussiank.compress``.
        **settings: as for ``gaussiank.compress``. The accelerator's ``GradScaler`` need not be given.

    Returns:
        The compression.

    Raises:
        ValueError: the model is not prepared, or there is one process alone; or as ``gaussiank.compress``.
        RuntimeError: it is compressed already.

    Example:
        ``compression = compress(accelerator, model, density=0.01)``
    """
    if accelerator.num_processes == 1:
        raise ValueError(
            "accelerator must have several processes, got one: there is nobody to exchange gradients with. Start with "
            "accelerate launch --num_processes 2, or leave compress out."
        )
    inner = getattr(model, "_orig_mod", model)  # of a compiled one
    if not (isinstance(inner, DistributedDataParallel) or is_sharded(inner)):
        raise ValueError(
            f"model must be what accelerator.prepare returned, got {type(inner).__name__} that is not wrapped. Call "
            "compress after model, optimizer, loader = accelerator.prepare(model, optimizer, loader)."
        )
    if settings.get("scaler") is None:
        settings["scaler"] = accelerator.scaler
    compression = compress_model(model, *density, **settings)
    number = _COUNTS[accelerator] = _COUNTS.get(accelerator, -1) + 1
    beside = _Beside(compression, f"{FOLDER}_{number}" if number else FOLDER)
    accelerator.register_save_state_pre_hook(beside.save)
    accelerator.register_load_state_pre_hook(beside.load)
    return compression


class _Beside:
    """Save and load with the accelerator's state, as long as the compression is in use.

    Args:
        compression: whose residuals.
        name: of their folder in the accelerator's.
    """

    def __init__(self, compression: Compression, name: str) -> None:
        self._compression, self._name = weakref.ref(compression), name

    def save(self, models: list[nn.Module], weights: list[Any], folder: str) -> None:
        """Save into a checkpoint's folder; accelerate calls it on every worker."""
        if (compression := self._compression()) is not None:
            compression.save(Path(folder) / self._name)

    def load(self, models: list[nn.Module], folder: str) -> None:
        """Load from a checkpoint's folder; accelerate calls it on every worker."""
        if (compression := self._compression()) is not None:
            load_beside(compression, Path(folder) / self._name, folder)
