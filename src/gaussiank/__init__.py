"""Gradient sparsification for PyTorch that sends a thousandth of the gradient and loses none of it."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compression import Compression
    from .compressors import (
        DGC,
        Capped,
        ChunkTopK,
        Compressor,
        Dense,
        GaussianK,
        MSTopK,
        RandomK,
        SIDCo,
        TopK,
        TrimmedTopK,
        compressor_names,
        parse_compressor,
    )
    from .doors import compress
    from .feedback import AdamWarning, ErrorFeedback
    from .layout import Layout
    from .local import LocalSteps
    from .metrics import Metrics, Observer
    from .momentum import MomentumCorrection
    from .reducer import AdamRows
    from .schedule import Constant, DenseStart, Schedule, Warmup
    from .sparse import SparseGradient

__version__ = "0.1.0"

_ROOMS = {
    "AdamRows": "reducer",
    "AdamWarning": "feedback",
    "Capped": "compressors",
    "ChunkTopK": "compressors",
    "Compression": "compression",
    "Compressor": "compressors",
    "Constant": "schedule",
    "DGC": "compressors",
    "Dense": "compressors",
    "DenseStart": "schedule",
    "ErrorFeedback": "feedback",
    "GaussianK": "compressors",
    "MSTopK": "compressors",
    "Metrics": "metrics",
    "Layout": "layout",
    "LocalSteps": "local",
    "MomentumCorrection": "momentum",
    "Observer": "metrics",
    "RandomK": "compressors",
    "SIDCo": "compressors",
    "Schedule": "schedule",
    "SparseGradient": "sparse",
    "TopK": "compressors",
    "TrimmedTopK": "compressors",
    "Warmup": "schedule",
    "compress": "doors",
    "compressor_names": "compressors",
    "parse_compressor": "compressors",
}

__all__ = [
    "DGC",
    "AdamRows",
    "AdamWarning",
    "Capped",
    "ChunkTopK",
    "Compression",
    "Compressor",
    "Constant",
    "Dense",
    "DenseStart",
    "ErrorFeedback",
    "GaussianK",
    "Layout",
    "LocalSteps",
    "MSTopK",
    "Metrics",
    "MomentumCorrection",
    "Observer",
    "RandomK",
    "SIDCo",
    "Schedule",
    "SparseGradient",
    "TopK",
    "TrimmedTopK",
    "Warmup",
    "__version__",
    "compress",
    "compressor_names",
    "parse_compressor",
]


_MODULES = ("autotune", "checkpoint", "codec", "collectives", "compressors", "ops", "reshard", "schedule")

# What has gone to the lab, by its old name here: module, and name in it (empty: the module itself).
_LAB = {
    "Recorder": ("gaussiank_lab.study.recorder", "Recorder"),
    "sim": ("gaussiank_lab.sim", ""),
    "theory": ("gaussiank_lab.theory", ""),
}


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])


def __getattr__(name: str) -> Any:
    # Rooms are entered on first use: schedules, plots and --help need no torch and must not wait for it.
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _LAB:
        return _moved(name)
    if name not in _ROOMS:
        raise AttributeError(f"module 'gaussiank' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value


def _moved(name: str) -> Any:
    """Return what stood here before the lab became a package of its own, with a warning that says where it is."""
    module, inner = _LAB[name]
    try:
        room = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "gaussiank_lab":
            raise
        raise ModuleNotFoundError(
            f"gaussiank.{name} has moved to the package gaussiank-lab, which is not installed. "
            "Run: pip install gaussiank-lab (in a clone: pip install ./lab).",
            name=error.name,
        ) from None
    place = "gaussiank_lab.Recorder" if name == "Recorder" else module
    warnings.warn(f"gaussiank.{name} has moved. Use {place}.", DeprecationWarning, stacklevel=3)
    return getattr(room, inner) if inner else room
