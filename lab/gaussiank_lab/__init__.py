"""The lab of gaussiank: command line, training, records and reports, benchmarks, cost model and theory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gaussiank_lab.study.recorder import Recorder

__all__ = ["Recorder"]


def __getattr__(name: str) -> Any:
    # On first use: whoever reads records needs no torch and must not wait for it.
    if name != "Recorder":
        raise AttributeError(f"module 'gaussiank_lab' has no attribute {name!r}")
    from gaussiank_lab.study.recorder import Recorder

    return Recorder
