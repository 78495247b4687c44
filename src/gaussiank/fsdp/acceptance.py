"""What ``compress`` can take of FSDP2, and what it refuses in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from gaussiank.ops import RESIDUAL_DTYPES
from gaussiank.reducer import Scope
from gaussiank.sparse import MAX_NUMEL

from .shard import ModuleShard

_HOW = 'mesh = init_device_mesh(device, (replicas, shards), mesh_dim_names=("replicate", "shard"))'
_WRAP = 'Write fully_shard(module, mesh=mesh["shard"]) for each module and for the model.'
_WRAPPED_NAMES = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def require_mesh(mesh: object) -> DeviceMesh:
    """Return the mesh, or raise unless it has replicas and shards and holds every worker.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(mesh, DeviceMesh):
        raise ValueError(
            f"mesh must be the DeviceMesh with the dimensions replicate and shard for a model of fully_shard, got "
            f'{mesh!r}. Write {_HOW}, shard over mesh["shard"], and give mesh=mesh.'
        )
    if mesh.mesh_dim_names is None or mesh.ndim != 2:
        raise ValueError(
            f"mesh must have two dimensions, replicas and then shards, got {mesh.mesh_dim_names}. Write {_HOW}."
        )
    if mesh.size() != dist.get_world_size():
        raise ValueError(
            f"mesh must hold every worker, got {mesh.size()} of {dist.get_world_size()}. Tensor and pipeline parallel "
            f"dimensions are not supported yet. Write {_HOW} with replicas * shards workers."
        )
    return mesh


def sharded_modules(model: nn.Module, mesh: DeviceMesh) -> list[ModuleShard]:
    """Find every FSDP module in a model, nested ones included; all of them must be fit for a hook.

    Args:
        model: the root that ``fully_shard`` was called on last.
        mesh: with replicas and shards.

    Raises:
        ValueError: torch has no hook, or a module is wrapped otherwise than over ``mesh["shard"]``.
        RuntimeError: a module has a hook already, or is no root.
    """
    _require_door(model)
    _require_nothing_else(model)
    if not isinstance(model, FSDPModule):
        place = next(path for path, one in model.named_modules() if isinstance(one, FSDPModule))
        raise ValueError(
            f"model must be the root that fully_shard was called on, got {type(model).__name__} that holds one. Give "
            f"it: gaussiank.compress(model.{place}, mesh=mesh), or call fully_shard on the whole model too."
        )
    if model._get_fsdp_state()._is_root is False:
        raise RuntimeError(
            "model must be the root that fully_shard was called on, got a module inside of one. Compress its root."
        )
    for path, module in _modules(model):
        _require_sharded_over(mesh, path, module)
    for _, module in _modules(model):
        module.reshard()  # after a forward, unsharded parameters may be registered
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    shards = []
    for path, module in _modules(model):
        if groups := _groups(module):
            shards.append(ModuleShard(path, module, groups[0], names))
    if not shards:
        raise ValueError("model must have parameters that fully_shard has sharded, got none. Shard it first.")
    return shards


def plain_name(name: str) -> str:
    """Return a parameter's name without what ``torch.compile`` and checkpoint wrappers put into it."""
    for wrapped in _WRAPPED_NAMES:
        name = name.replace(wrapped, "")
    return name


def require_reducible(shards: list[ModuleShard], scope: Scope, *, sends_all: bool) -> None:
    """Refuse parameters whose gradients cannot be kept, or do not fit what a sparse gradient can be.

    Raises:
        ValueError: names one.
    """
    total = 0
    for shard in shards:
        for one in shard.parameters:
            parameter = one.parameter
            if parameter.is_meta:
                raise ValueError(
                    f"parameter {one.name} must have its values, got one on the meta device. Call "
                    "model.to_empty(device=...) and initialize or load it before compress."
                )
            if parameter.requires_grad and shard.dtype not in RESIDUAL_DTYPES:
                known = ", ".join(str(dtype).removeprefix("torch.") for dtype in RESIDUAL_DTYPES)
                raise ValueError(
                    f"dtype of the gradient of {one.name} must be one of {known}, got {shard.dtype}. Freeze or convert "
                    "it, or set reduce_dtype in MixedPrecisionPolicy."
                )
            if hasattr(parameter, "_in_backward_optimizers") or (
                scope == "model" and getattr(parameter, "_post_accumulate_grad_hooks", None)
            ):
                raise ValueError(
                    f"model must be stepped after backward, got {one.name} with a hook on its gradient, which comes "
                    "before the exchange. Step an ordinary optimizer, or leave scope='model' out."
                )
        numel = sum(one.padded for one in shard.parameters if one.parameter.requires_grad)
        if numel > MAX_NUMEL and not sends_all:
            raise ValueError(
                f"a shard of module {shard.path or 'root'!r} must have at most {MAX_NUMEL} entries, got {numel}. Call "
                "fully_shard on the modules in it, or shard over more workers."
            )
        total += numel
    if scope == "model" and total > MAX_NUMEL and not sends_all:
        raise ValueError(
            f"scope must be bucket or layer for shards of more than {MAX_NUMEL} entries, got model with {total}. "
            "Choose one of them."
        )


def _modules(model: nn.Module) -> Iterator[tuple[str, FSDPModule]]:
    """Yield each FSDP module once, with its path; ``fully_shard([a, b])`` makes one of several."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, FSDPModule) and id(state := module._get_fsdp_state()) not in seen:
            seen.add(id(state))
            yield path, module


def _groups(module: FSDPModule) -> list[Any]:
    """Return torch's FSDP parameter groups of a module; none where all its parameters belong to modules in it."""
    state = module._get_fsdp_state()
    return list(state._fsdp_param_groups)


def _require_door(model: nn.Module) -> None:
    """Refuse a torch whose FSDP2 lacks the hook, or keeps elsewhere what is read of it."""
    state = next(one._get_fsdp_state() for one in model.modules() if isinstance(one, FSDPModule))
    fields = getattr(state, "_fsdp_param_groups", None), getattr(state, "_state_ctx", None)
    if not hasattr(FSDPModule, "set_all_reduce_hook") or None in fields or not hasattr(fields[1], "all_states"):
        raise ValueError(
            f"torch must have FSDPModule.set_all_reduce_hook, and FSDP2's fields as 2.13 has them, for a model of "
            f"fully_shard, got {torch.__version__}. Install torch 2.13, or use DistributedDataParallel."
        )


def _require_nothing_else(model: nn.Module) -> None:
    for path, module in model.named_modules():
        names = {kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch.distributed.")}
        if isinstance(module, DistributedDataParallel):
            raise ValueError(
                f"model must be sharded by fully_shard alone, got DistributedDataParallel at {path or 'its root'!r}. "
                "Leave it out: mesh's dimension replicate does what it does."
            )
        if "FullyShardedDataParallel" in names:
            raise ValueError(
                f"model must be sharded by fully_shard, got FullyShardedDataParallel (FSDP1) at "
                f"{path or 'its root'!r}. {_WRAP}"
            )
        if "ReplicateModule" in names:
            raise ValueError(
                f"model must be sharded by fully_shard, got replicate() at {path or 'its root'!r}, which reduces over "
                f"all replicas before a hook. {_WRAP} A dimension shard of size 1 shards nothing."
            )


def _require_sharded_over(mesh: DeviceMesh, path: str, module: FSDPModule) -> None:
    groups = _groups(module)
    name = path or "root"
    if len(groups) > 1:
        raise ValueError(
            f"module {name!r} must have its parameters on one mesh, got {len(groups)} meshes by shard_placement_fn: "
            "torch gives such a module no hook. Call fully_shard on the modules in it, one for each mesh."
        )
    for group in groups:
        info = group.mesh_info
        if info.replicate_mesh_dim is not None:
            raise ValueError(
                f'module {name!r} must be sharded over mesh["shard"] alone, got a mesh with replicas, over which torch '
                f"sends dense gradients itself. {_WRAP}"
            )
        own, wanted = (dist.get_process_group_ranks(one) for one in (info.shard_process_group, mesh.get_group(1)))
        if own != wanted:
            raise ValueError(
                f"module {name!r} must be sharded over the mesh's second dimension, ranks {wanted}, got ranks {own}. "
                f"{_WRAP}"
            )
        if group._all_reduce_hook is not None:
            raise RuntimeError(
                f"model must have no all-reduce hook yet, got one on module {name!r}. Call compress once, and set no "
                "other hook."
            )
