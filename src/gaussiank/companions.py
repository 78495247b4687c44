"""Looks, once, at the optimizer and the ``GradScaler`` that a compressed model is trained with: do they go with it?"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gaussiank.momentum import MomentumCorrection


def look_at_companions(
    owner: object,
    parameters: Iterable[Parameter],
    momentum: MomentumCorrection | None,
    scaler: torch.amp.GradScaler | None,
    *,
    has_residual: bool,
) -> None:
    """Check each optimizer of these parameters when it is about to take its first step.

    torch tells of the steps of all optimizers; later ones cost a look into a set, and nothing once ``owner`` is gone.

    Args:
        owner: while it lives, optimizers are looked at.
        parameters: of the compressed model.
        momentum: a ``ValueError`` is raised in a step whose optimizer has momentum as well.
        scaler: without one, a warning is given in a step that a ``GradScaler`` takes with a fused optimizer. Other
            optimizers are not told of theirs.
        has_residual: without one, the scale does not matter.
    """
    velocity = momentum is not None and momentum.momentum > 0
    check = _Check(parameters, velocity=velocity, scaled=has_residual and scaler is None)
    weakref.finalize(owner, register_optimizer_step_pre_hook(check).remove)


class _Check:
    """What torch calls before a step of any optimizer."""

    def __init__(self, parameters: Iterable[Parameter], *, velocity: bool, scaled: bool) -> None:
        self._parameters = {id(parameter): weakref.ref(parameter) for parameter in parameters}
        self._velocity, self._scaled = velocity, scaled
        self._seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        if optimizer in self._seen:
            return
        if self._velocity:
            for group in optimizer.param_groups:
                if any(map(self._is_ours, group["params"])):
                    _require_no_momentum(optimizer, group)
        self._seen.add(optimizer)
        if not self._scaled or not hasattr(optimizer, "found_inf"):  # what a scaler gives to a fused optimizer
            return
        if any(self._is_ours(one) for group in optimizer.param_groups for one in group["params"]):
            warnings.warn(
                "scaler must be the GradScaler that scales the loss, got none: when its scale changes, residuals keep "
                "the old unit. Give it to gaussiank.compress(..., scaler=scaler).",
                stacklevel=2,
            )

    def _is_ours(self, parameter: Parameter) -> bool:
        known = self._parameters.get(id(parameter))
        return known is not None and known() is parameter  # an id may be used again


def _require_no_momentum(optimizer: Optimizer, group: dict[str, Any]) -> None:
    momentum, betas = group.get("momentum", 0.0), group.get("betas")
    name = type(optimizer).__name__
    if momentum:
        raise ValueError(
            f"momentum of the optimizer must be 0 beside a MomentumCorrection, got {momentum} in {name}: it would "
            "count twice. Set the optimizer's to 0, or leave the correction out."
        )
    if betas and betas[0]:
        raise ValueError(
            f"betas of the optimizer must start with 0 beside a MomentumCorrection, got {betas} in {name}: momentum "
            "would count twice. Set the first to 0, or leave the correction out."
        )
