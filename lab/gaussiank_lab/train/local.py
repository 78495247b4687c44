"""Methods of ``gaussiank train`` beside the compressors: those that exchange seldom, and torch's PowerSGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gaussiank.parsing import parse_spec
from gaussiank.schedule import require_density

if TYPE_CHECKING:  # settings are checked before torch is loaded
    import torch
    from torch import nn

    from gaussiank import LocalSteps

SYNC_EVERY = 10


@dataclass(frozen=True)
class Local:
    """Local steps with a sparse exchange, as SparseLoCo has them.

    Args:
        density: share of the entries to send.
        compressor: which ones.
        scope: where k is counted: on a ``fragment``, or on each parameter (``layer``).
        wire: how they travel.
        decay: what a residual is multiplied by in each round.
        fragments: parts of the model that take turns.
        sync_delay: steps from a fragment's sending to its applying.
        sync_every: steps between two rounds, 0 for the run's.
    """

    density: float = 1 / 16
    compressor: str = "chunktopk"
    scope: str = "fragment"
    wire: str = "rice+2bit"
    decay: float = 1.0
    fragments: int = 1
    sync_delay: int = 0
    sync_every: int = 0

    def __post_init__(self) -> None:
        require_density(self.density)

    def settings(self) -> dict[str, Any]:
        """Return what ``LocalSteps`` takes besides ``sync_every``."""
        return {
            "density": self.density,
            "compressor": self.compressor,
            "scope": self.scope,
            "wire": self.wire,
            "decay": self.decay,
            "fragments": self.fragments,
            "sync_delay": self.sync_delay,
        }


@dataclass(frozen=True)
class DiLoCo:
    """Local steps with the whole difference and an outer optimizer with Nesterov momentum.

    Args:
        values: ``fp32``, or ``8bit`` and other value codes; what they round off waits in a residual.
        lr: of the outer optimizer.
        momentum: of the outer optimizer.
        fragments: parts of the model that take turns.
        sync_delay: steps from a fragment's sending to its applying.
        sync_every: steps between two rounds, 0 for the run's.

    Source: Douillard et al. 2023, "DiLoCo: Distributed Low-Communication Training of Language Models".
    """

    values: str = "fp32"
    lr: float = 0.7
    momentum: float = 0.9
    fragments: int = 1
    sync_delay: int = 0
    sync_every: int = 0

    def settings(self) -> dict[str, Any]:
        """Return what ``LocalSteps`` takes besides ``sync_every``."""
        return {
            "density": 1.0,
            "compressor": "topk",
            "wire": None if self.values == "fp32" else f"rice+{self.values}",
            "decay": 1.0,
            "fragments": self.fragments,
            "sync_delay": self.sync_delay,
            "outer_optimizer": self._outer,
        }

    def _outer(self, parameters: Any) -> torch.optim.Optimizer:
        import torch

        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)


@dataclass(frozen=True)
class PowerSGD:
    """PowerSGD by torch's own hook, after two dense steps.

    Args:
        rank: columns of the thin matrices that are sent in place of each gradient matrix.

    Source: Vogels et al. 2019, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization".
    """

    rank: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}. 1 sends least.")


POWERSGD = "powersgd"


def powersgd_method(method: str) -> PowerSGD | None:
    """Read ``powersgd:rank=1``; None where the name is another.

    Raises:
        ValueError: an unknown setting, or a value that does not fit.
    """
    return parse_spec("method", method, {POWERSGD: PowerSGD}) if method.strip().partition(":")[0] == POWERSGD else None


LOCAL_METHODS: dict[str, type[Local] | type[DiLoCo]] = {"local": Local, "diloco": DiLoCo}
"""Name -> class of the methods that exchange seldom."""


def local_method(method: str) -> Local | DiLoCo | None:
    """Read a method that exchanges seldom, ``name:field=value``; None where its name is that of a compressor.

    Raises:
        ValueError: an unknown setting, or a value that does not fit.

    Example:
        >>> local_method("diloco:values=8bit").settings()["wire"], local_method("topk")
        ('rice+8bit', None)
    """
    if method.strip().partition(":")[0] not in LOCAL_METHODS:
        return None
    return parse_spec("method", method, LOCAL_METHODS)


def local_steps(
    method: Local | DiLoCo,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    sync_every: int,
    collective: str,
    timeout_s: float,
) -> LocalSteps:
    """Make the exchange of a method that exchanges seldom."""
    from gaussiank import LocalSteps

    settings = method.settings()
    if collective != "allgather":  # the library's own default is one with less room
        settings["collective"] = collective
    every = method.sync_every or sync_every
    return LocalSteps(model, optimizer, sync_every=every, timeout_s=timeout_s, **settings)
