"""What ``compress`` can take: finds the DDP model in a wrapper, and refuses in a sentence what cannot be reduced."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from gaussiank.reducer import Scope
from gaussiank.sparse import MAX_NUMEL

# class of torch.distributed -> who makes it; by name, because to import them takes longer than to look
_SHARDED = {
    "ReplicateModule": "replicate",
    "FSDPModule": "fully_shard (FSDP2)",
    "FullyShardedDataParallel": "FullyShardedDataParallel (FSDP1)",
    "DDP": "replicate",
}


def ddp_of(model: nn.Module) -> DistributedDataParallel:
    """Return the model itself, or what ``torch.compile`` has wrapped.

    Raises:
        ValueError: it is not wrapped in ``DistributedDataParallel``, or in something else.
    """
    found = getattr(model, "_orig_mod", model)
    if isinstance(found, DistributedDataParallel):
        return found
    name = type(found).__name__
    for module in found.modules() if isinstance(found, nn.Module) else ():
        if (other := _other_parallel(module)) is not None:
            raise ValueError(
                f"model must be wrapped in DistributedDataParallel, got {name} of {other}, which is not supported yet. "
                "Leave compress out, or use DistributedDataParallel in its place."
            )
    for place, module in found.named_modules() if isinstance(found, nn.Module) else ():
        if isinstance(module, DistributedDataParallel):
            raise ValueError(
                f"model must be a DistributedDataParallel, got {name} that holds one. "
                f"Give it: gaussiank.compress(model.{place})."
            )
    raise ValueError(
        f"model must be wrapped in DistributedDataParallel, got {name}. "
        "Wrap it first: gaussiank.compress(DistributedDataParallel(model))."
    )


def is_sharded(model: nn.Module) -> bool:
    """Tell whether ``fully_shard`` was called on the model or on a module in it."""
    return any(_other_parallel(module) == _SHARDED["FSDPModule"] for module in model.modules())


def _other_parallel(module: nn.Module) -> str | None:
    names = {kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch.distributed.")}
    return next((text for name, text in _SHARDED.items() if name in names), None)


def require_reducible(model: DistributedDataParallel, scope: Scope, *, sends_all: bool = False) -> None:
    """Refuse a model whose gradients do not come to a hook, or do not fit what a sparse gradient can be.

    Args:
        model: checked before its first forward.
        scope: where k is counted.
        sends_all: nothing is selected, so that lengths do not matter.

    Raises:
        ValueError: so it is.
    """
    if getattr(model, "_use_python_reducer", False):
        raise ValueError(
            "torch._dynamo.config.optimize_ddp must not be python_reducer, which hands a hook no buckets. Set it to "
            "ddp_optimizer before the model is wrapped in DistributedDataParallel."
        )
    if getattr(model, "skip_all_reduce_unused_params", False):
        raise ValueError(
            "skip_all_reduce_unused_params must be False beside a compression, got True: DDP leaves buckets out and "
            "does not say so. Set find_unused_parameters=True alone."
        )
    reduced = [one for one in model.parameters() if one.requires_grad]
    if any(hasattr(one, "_in_backward_optimizers") for one in reduced):
        raise ValueError(
            "model must be stepped after backward, got parameters with _apply_optimizer_in_backward, which needs DDP's "
            "only hook itself. Step an ordinary optimizer."
        )
    if not sends_all:
        _require_lengths(model, scope)


def _require_lengths(model: DistributedDataParallel, scope: Scope) -> None:
    """Refuse vectors whose positions do not fit an int32."""
    ignored = set(getattr(model, "parameters_to_ignore", ()))
    named = [(name, one) for name, one in model.module.named_parameters() if one.requires_grad and name not in ignored]
    total = sum(one.numel() for _, one in named)
    if total <= MAX_NUMEL:
        return
    for name, one in named:
        if one.numel() > MAX_NUMEL:
            raise ValueError(
                f"parameter {name} must have at most {MAX_NUMEL} entries, got {one.numel()}. Split or freeze it."
            )
    if scope == "model":
        raise ValueError(
            f"scope must be bucket or layer for a model of more than {MAX_NUMEL} entries, got model with {total}. "
            "Choose one of them."
        )
    if (longest := _longest_bucket(model, [one for _, one in named])) > MAX_NUMEL:
        whole = not model.find_unused_parameters or model.static_graph
        advice = "Set find_unused_parameters=True" if whole else "Lower bucket_cap_mb"
        reason = ", because DDP's first step has one for all parameters of a dtype" if whole else ""
        raise ValueError(
            f"a bucket of DDP must have at most {MAX_NUMEL} entries, got up to {longest}{reason}. {advice} when you "
            "wrap the model."
        )


def _longest_bucket(model: DistributedDataParallel, parameters: list[Parameter]) -> int:
    """Return how many entries a bucket may have: DDP closes one when it has reached its size."""
    totals: Counter[tuple[torch.dtype, torch.device]] = Counter()
    bounds: Counter[tuple[torch.dtype, torch.device]] = Counter()
    for one in parameters:
        key = one.dtype, one.device
        totals[key] += one.numel()
        bounds[key] = max(bounds[key], model.bucket_bytes_cap // one.itemsize + one.numel())
    if not model.find_unused_parameters or model.static_graph:
        return max(totals.values())
    return max(min(totals[key], bounds[key]) for key in totals)
