"""The order of parameters in a hook's vector, looked at with a marked gradient before any other is trusted to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from .shard import ModuleShard

SHAPES = ((5, 3), (2,), (4, 1, 2))  # of which no two shards have one length on up to four ranks


class Marked(nn.Module):
    """Parameters whose gradients are numbers that no other entry has."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(shape, dtype=torch.float32, device=device) for shape in SHAPES)

    def forward(self, marks: list[Tensor]) -> Tensor:
        """Return the sum of each parameter times its marks."""
        return torch.stack([(weight * mark).sum() for weight, mark in zip(self.weights, marks, strict=True)]).sum()


def require_known_order(mesh: DeviceMesh) -> None:
    """Raise unless this torch lays gradients into a hook's vector as ``ModuleShard`` says; all workers call it.

    Raises:
        RuntimeError: it does not.
    """
    device, start, marks = mesh.device_type, 1.0, []
    for shape in SHAPES:
        mark = torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.float32, device=device)
        marks.append(mark.view(shape))
        start += mark.numel()
    assert mesh.mesh_dim_names is not None
    model: Any = fully_shard(Marked(device), mesh=mesh[mesh.mesh_dim_names[1]])
    (group,) = model._get_fsdp_state()._fsdp_param_groups
    shard = ModuleShard("", model, group, {id(one): name for name, one in model.named_parameters()})
    seen: list[bool] = []

    def look(vector: Tensor) -> None:
        plan = shard.plan(vector.numel())
        for (one, piece), mark in zip(plan.pieces(plan.gradient(vector)), marks, strict=True):
            rows = -(-len(mark) // mesh.size(1))
            own = mark[rows * mesh.get_local_rank(1) :][:rows]
            seen.append(one.numel == own.numel() and torch.equal(piece, own.flatten()))

    model.set_all_reduce_hook(look)
    with torch.enable_grad():
        model(marks).backward()
    if not seen or not all(seen):
        raise RuntimeError(
            f"FSDP2 must hand gradients to its hook in the order of torch 2.13, got another from torch "
            f"{torch.__version__}. Install torch 2.13, or use DistributedDataParallel."
        )
