"""Residuals as DTensors for ``torch.distributed.checkpoint``: saved once each, loaded on any mesh.

Residuals differ between replicas. So each has a leading dimension of replicas, ``[R, *parameter]``, that is sharded
over them; without it the planner would take all replicas' for copies and keep one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from gaussiank.dcp_metadata import Entry, entries
from gaussiank.reshard import reshard, sources

from .shard import ShardedParameter

PREFIX = "gaussiank/fsdp"
FORMAT = 1


def dtensors(state: Mapping[str, Any], parameters: Iterable[ShardedParameter], mesh: DeviceMesh) -> dict[str, Tensor]:
    """Turn a rank's state into DTensors, and two small tensors that all ranks have alike.

    Args:
        state: what ``state_dict`` returned, between the same two steps on every rank.
        parameters: of the model.
        mesh: replicas and shards.
    """
    counts = [FORMAT, state["step"], state["exchanges"], mesh.size(0)]
    tensors: dict[str, Tensor] = {
        f"{PREFIX}/counts": torch.tensor(counts, dtype=torch.int64),
        f"{PREFIX}/scale": torch.tensor([state["scale"]], dtype=torch.float64),
    }
    trained = [one for one in parameters if one.parameter.requires_grad]
    feedback, moments = state["feedback"], state.get("precondition", {})
    for kind in ("residual", "velocity"):
        if kind == "velocity" and feedback["residual"] and not feedback["velocity"]:
            continue
        for one in trained:
            held = _held(feedback[kind], one, one.numel, mesh).view(1, *one.local.shape)
            shape = (mesh.size(0), *one.parameter.shape)
            tensors[f"{PREFIX}/{kind}/{one.name}"] = _dtensor(held, mesh, [Shard(0), Shard(one.dim + 1)], shape)
    for kind in moments:
        for one in trained:
            rows, columns = _rows(one), 1 if one.dim == 0 else mesh.size(1)
            held = _held(moments[kind], one, rows, mesh).view(rows, 1)
            # the same on all replicas; where columns are sharded, each shard has moments of its own for all rows
            placements = [Replicate(), Shard(1 if one.dim else 0)]
            shape = (_rows(one, whole=True), columns)
            tensors[f"{PREFIX}/{kind}/{one.name}"] = _dtensor(held, mesh, placements, shape)
    return tensors


def _held(known: Mapping[str, Tensor], one: ShardedParameter, numel: int, mesh: DeviceMesh) -> Tensor:
    """Return what is held of a parameter, zeros where nothing is yet; 32 bits at least, the same on every rank."""
    held = known.get(one.name)
    if held is None:
        return torch.zeros(numel, dtype=torch.float32, device=mesh.device_type)
    return held.to(torch.promote_types(held.dtype, torch.float32))


def _rows(one: ShardedParameter, *, whole: bool = False) -> int:
    """Return how many second moments a parameter's shard has, or all of it; see ``Preconditioner.rows``."""
    shape = one.parameter.shape if whole else one.local.shape
    return int(shape[0] if len(shape) > 1 else shape.numel())


def _dtensor(local: Tensor, mesh: DeviceMesh, placements: Sequence[Placement], shape: Sequence[int]) -> DTensor:
    size = torch.Size(shape)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=size, stride=_strides(size))


def state_of(
    checkpoint: str | Path, parameters: Iterable[ShardedParameter], mesh: DeviceMesh, *, moving: bool
) -> dict[str, Any]:
    """Read this rank's state from what was saved of ``dtensors`` on this mesh or on another; nothing in it is run.

    Args:
        checkpoint: folder that was saved to.
        parameters: of the model.
        mesh: replicas and shards now.
        moving: whether there is a momentum correction.

    Raises:
        FileNotFoundError: the folder is no such checkpoint.
        ValueError: it holds no such state, or that of another model, or a file is damaged.
    """
    found = entries(checkpoint, f"{PREFIX}/")
    if f"{PREFIX}/counts" not in found:
        raise ValueError(
            f"checkpoint must hold compression.dtensors(), got {checkpoint} without. Save them too, or leave loading "
            "out where a run begins without residuals."
        )
    number, step, exchanges, saved = found[f"{PREFIX}/counts"].read().tolist()
    if number != FORMAT:
        raise ValueError(f"state must have format {FORMAT}, got {number}. Load it with the gaussiank that saved it.")
    kinds = ("residual", "velocity") if moving else ("residual",)
    moments = [kind for kind in ("moment", "weight") if any(name.startswith(f"{PREFIX}/{kind}/") for name in found)]
    parameters = [one for one in parameters if one.numel]
    rank, replicas = mesh.get_local_rank(0), mesh.size(0)
    states = [
        {
            "format": 1,
            "rank": source,
            "world_size": saved,
            "step": step,
            "exchanges": exchanges,
            "scale": float(found[f"{PREFIX}/scale"].read()[0]),
            "hints": {},
            "feedback": {
                "format": 1,
                "parameters": {one.name: one.numel for one in parameters},
                "velocity": {},
                **{kind: _shards(found, kind, parameters, source, saved, mesh) for kind in kinds},
            },
            **(
                {"precondition": {kind: _moments(found, kind, parameters, mesh) for kind in moments}} if moments else {}
            ),
        }
        for source in sources(rank, replicas, saved)
    ]
    return reshard(states, rank, replicas)


def _shards(
    found: Mapping[str, Entry],
    kind: str,
    parameters: Iterable[ShardedParameter],
    source: int,
    saved: int,
    mesh: DeviceMesh,
) -> dict[str, Tensor]:
    held = {}
    for one in parameters:
        entry = found.get(f"{PREFIX}/{kind}/{one.name}")
        if entry is None:
            if one.parameter.requires_grad:
                raise ValueError(f"checkpoint must hold a {kind} of {one.name}, got none. Load that of this model.")
            continue
        shape = tuple(one.local.shape)
        if entry.shape != (saved, *one.parameter.shape):
            raise ValueError(
                f"{kind} of {one.name} must have shape {tuple(one.parameter.shape)}, got {entry.shape[1:]}. Load the "
                "checkpoint of this model."
            )
        start = [0] * len(shape)
        start[one.dim] = _span(one.parameter.shape[one.dim], mesh.size(1), mesh.get_local_rank(1))[0]
        held[one.name] = entry.region((source, *start), (1, *shape)).flatten()
    return held


def _moments(
    found: Mapping[str, Entry], kind: str, parameters: Iterable[ShardedParameter], mesh: DeviceMesh
) -> dict[str, Tensor]:
    """Read second moments of this rank's rows, or of the columns that it has now, weighted by whose they were."""
    held, shards, rank = {}, mesh.size(1), mesh.get_local_rank(1)
    for one in parameters:
        if (entry := found.get(f"{PREFIX}/{kind}/{one.name}")) is None:
            continue
        size = one.parameter.shape[one.dim]
        own = _span(size, shards, rank)
        if one.dim == 0 and entry.shape == (_rows(one, whole=True), 1):
            held[one.name] = entry.region((own[0], 0), (own[1] - own[0], 1)).flatten()
            continue
        if one.dim == 0 or entry.shape[0] != _rows(one, whole=True):
            raise ValueError(
                f"second moments of {one.name} must be of {_rows(one, whole=True)} rows, got {entry.shape}. Load the "
                "checkpoint of this model, sharded along the same dimension."
            )
        whole, was = entry.read(), entry.shape[1]
        spans = [_span(size, was, column) for column in range(was)]
        common = [max(0, min(own[1], end) - max(own[0], start)) for start, end in spans]
        share = torch.tensor(common, dtype=whole.dtype, device="cpu") / max(1, own[1] - own[0])
        held[one.name] = (whole * share).sum(1)
    return held


def _span(size: int, shards: int, rank: int) -> tuple[int, int]:
    """Return where a rank's part of a dimension begins and ends, as ``torch.chunk`` cuts it."""
    each = -(-size // shards)
    return min(size, each * rank), min(size, each * (rank + 1))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
