"""What a model is compressed with: parsed once, checked once, agreed on by all workers once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from gaussiank.autotune import Policy
from gaussiank.codec import Wire
from gaussiank.collectives import EXACT, AllGather, fitting_wire, require_feedback
from gaussiank.compressors import Compressor
from gaussiank.momentum import LocalClip, MomentumCorrection
from gaussiank.schedule import Schedule, describe

from .precondition import AdamRows

Scope = Literal["bucket", "layer", "model"]
OnNonfinite = Literal["propagate", "raise"]

_YEAR_S = 365 * 86400.0  # a process group's time-out is counted in nanoseconds, in 64 bits


@dataclass(frozen=True)
class Settings:
    """Say how gradients become a mean; the same on every worker.

    Args:
        schedule: density over steps.
        compressor: which entries to send.
        scope: where k is counted: on each vector, on each parameter (``layer``), or on the whole ``model``.
        momentum: momentum correction, or None.
        clip: clips a worker's own gradient before anything is selected, or None.
        on_nonfinite: pass a mean on that is not finite (``propagate``), or raise.
        collective: how the sparse gradients become a mean.
        wire: how their entries travel.
        timeout_s: seconds after which a message fails that a worker did not answer; None for the process group's own.
        decay: what a residual is multiplied by before a gradient joins it, in [0, 1]; at 1 nothing is forgotten.
        precondition: what a gradient is divided by before anything is selected, or None.
        caller: what the user called, for warnings.
        residual_dtype: ``torch.bfloat16`` for residuals of 16 bits, or None.

    Raises:
        ValueError: what does not go together, or is out of its range.

    Example:
        >>> from gaussiank.compressors import TopK
        >>> from gaussiank.schedule import Constant
        >>> Settings(Constant(0.01), TopK()).agreed()["wire"]
        Wire(index='raw', values='fp32', rounding='nearest')
    """

    schedule: Schedule
    compressor: Compressor
    scope: Scope = "bucket"
    momentum: MomentumCorrection | None = None
    clip: LocalClip | None = None
    on_nonfinite: OnNonfinite = "propagate"
    collective: Policy = field(default_factory=AllGather)
    wire: Wire = EXACT
    timeout_s: float | None = None
    decay: float = 1.0
    precondition: AdamRows | None = None
    caller: Literal["compress", "LocalSteps"] = "compress"
    residual_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        require_scope(self.scope)
        if self.on_nonfinite not in get_args(OnNonfinite):
            raise ValueError(f"on_nonfinite must be propagate or raise, got {self.on_nonfinite!r}. Choose one of them.")
        if self.momentum is not None and not self.compressor.keeps_rest:
            raise ValueError(
                f"momentum must be None for a compressor without feedback, got {self.momentum}. Leave it out."
            )
        if self.clip is not None and self.momentum is not None and self.momentum.clip_norm is not None:
            raise ValueError(
                f"clip_norm must be given once, got {self.clip.norm} and {self.momentum.clip_norm} in momentum. "
                "Leave one out."
            )
        if not isinstance(self.precondition, AdamRows | None):
            raise ValueError(f"precondition must be an AdamRows, got {self.precondition!r}. Give gaussiank.AdamRows().")
        if self.precondition is not None and (self.momentum is not None or not self.compressor.keeps_rest):
            beside = "momentum" if self.momentum is not None else "a compressor without feedback"
            raise ValueError(f"precondition must be None beside {beside}, got {self.precondition}. Leave one out.")
        if self.residual_dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(
                f"residual_dtype must be torch.float32 or torch.bfloat16, got {self.residual_dtype}. Leave it out."
            )
        if self.narrow and not self.compressor.keeps_rest:
            raise ValueError(
                "residual_dtype must be None for a compressor without feedback, got bfloat16. Leave it out."
            )
        if self.timeout_s is not None and not 0 < self.timeout_s <= _YEAR_S:
            raise ValueError(
                f"timeout_s must be above 0 and at most {_YEAR_S:.0f}, a year, got {self.timeout_s}. "
                "300 waits for five minutes."
            )
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be in [0, 1], got {self.decay}. 1 forgets nothing.")
        require_feedback(self.collective, self.compressor)
        fitting_wire(self.wire, self.compressor, self.collective)

    @property
    def narrow(self) -> bool:
        """Whether residuals have 16 bits."""
        return self.residual_dtype is torch.bfloat16

    @property
    def fitting_wire(self) -> Wire:
        """The wire, without indices where all workers draw the same."""
        return fitting_wire(self.wire, self.compressor, self.collective)

    def agreed(self) -> dict[str, object]:
        """Return what must be the same on every worker: what a user calls it -> its value."""
        return {
            "density": describe(self.schedule),
            "compressor": self.compressor,
            "scope": self.scope,
            "momentum": self.momentum,
            "clip_norm": self.clip and self.clip.norm,
            "on_nonfinite": self.on_nonfinite,
            "collective": self.collective,
            "wire": self.wire,
            "timeout_s": self.timeout_s,
            **({} if self.decay == 1 else {"decay": self.decay}),
            **({} if self.precondition is None else {"precondition": self.precondition}),
            **({"residual_dtype": self.residual_dtype} if self.narrow else {}),
        }


def require_scope(scope: str) -> None:
    """Raise unless ``scope`` is a known one.

    Raises:
        ValueError: it is not.
    """
    if scope not in get_args(Scope):
        raise ValueError(f"scope must be one of {', '.join(get_args(Scope))}, got {scope!r}. Choose one of them.")
