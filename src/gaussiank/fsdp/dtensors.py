"""Residuals as DTensors for ``torch.distributed.checkpoint``: saved once each, loaded on any mesh.

Residuals differ between replicas. So each has a leading dimension of replicas, ``[R, *parameter]``, that is sharded
over them; without it the planner would take all replicas' for copies and keep one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

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

    Raises:
        RuntimeError: there are second moments, which have no DTensors yet.
    """
    if "precondition" in state:
        raise RuntimeError(
            "dtensors must be of a compression without precondition, got one with second moments, which they do not "
            "hold. Save with compression.save(folder), and load on the same mesh."
        )
    counts = [FORMAT, state["step"], state["exchanges"], mesh.size(0)]
    tensors: dict[str, Tensor] = {
        f"{PREFIX}/counts": torch.tensor(counts, dtype=torch.int64),
        f"{PREFIX}/scale": torch.tensor([state["scale"]], dtype=torch.float64),
    }
    feedback = state["feedback"]
    for kind in ("residual", "velocity"):
        if kind == "velocity" and feedback["residual"] and not feedback["velocity"]:
            continue
        for one in parameters:
            if one.parameter.requires_grad:
                held = feedback[kind].get(one.name)
                if held is None:
                    held = torch.zeros(one.numel, dtype=torch.float32, device=mesh.device_type)
                tensors[f"{PREFIX}/{kind}/{one.name}"] = DTensor.from_local(
                    held.view(1, *one.local.shape),
                    mesh,
                    [Shard(0), Shard(one.dim + 1)],
                    run_check=False,
                    shape=torch.Size((mesh.size(0), *one.parameter.shape)),
                    stride=_strides((mesh.size(0), *one.parameter.shape)),
                )
    return tensors


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
    parameters = [one for one in parameters if one.numel]
    rank, replicas = mesh.get_local_rank("replicate"), mesh.size(0)
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
        rows, shards = one.parameter.shape[one.dim], mesh.size(1)
        start[one.dim] = -(-rows // shards) * mesh.get_local_rank("shard")
        held[one.name] = entry.region((source, *start), (1, *shape)).flatten()
    return held


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
