"""Adapters for trainers of others: ``transformers``, ``accelerate``, ``lightning``; each imports its framework itself.

Each takes what ``gaussiank.compress`` takes, gives it the model that the framework has wrapped, and saves and loads
every worker's residuals with the framework's checkpoints. See docs/frameworks.md.
"""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from pathlib import Path

import torch.distributed as dist

from gaussiank.compression import Compression

FOLDER = "gaussiank"
"""Name of the folder beside a checkpoint."""


def require_version(package: str, oldest: str) -> None:
    """Raise unless a framework is installed, and not too old.

    Args:
        package: its name.
        oldest: version that the adapter was tried with, numbers joined by dots.

    Raises:
        ImportError: so it is.

    Example:
        >>> require_version("torch", "2.6")
    """
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"{package} must be installed, got none. Run: pip install '{package}>={oldest}'.", name=package
        ) from None
    if _numbers(found) < _numbers(oldest):
        raise ImportError(
            f"{package} must be at least {oldest}, got {found}. Run: pip install '{package}>={oldest}'.", name=package
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3]]


def load_beside(compression: Compression, folder: Path, checkpoint: str | Path) -> bool:
    """Go on from the residuals beside a checkpoint, or say on rank 0 that there are none; call it on every worker.

    Args:
        compression: whose step is the checkpoint's afterwards.
        folder: they were saved to.
        checkpoint: of the framework, for the message.

    Returns:
        Whether there are.

    Raises:
        ValueError: they are damaged, or of another model.
    """
    try:
        compression.load(folder)
        return True
    except FileNotFoundError:
        compression.begin_without_state()
        if dist.get_rank() == 0:
            warnings.warn(
                f"checkpoint {checkpoint} holds no residuals: compression begins with none, which is right if the run "
                "that saved it was not compressed. If it was, save through the adapter from its first step on.",
                stacklevel=3,
            )
        return False
