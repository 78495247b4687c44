"""What an FSDP module hands to its all-reduce hook: which parameter lies where in the flat vector.

torch documents the hook and not its vector. Read from torch's source, seen so with torch 2.13.0, and looked at whenever
a model is compressed (``marked.py``): the gradients of
the module's FSDP parameter group in the order of ``FSDPParamGroup.fsdp_params``, each this rank's shard, contiguous,
padded with zeros to the length of rank 0's. A parameter without gradient is left out, and all that follow move up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from gaussiank.layout import Layout

_MOST_SUMS = 10_000  # that are looked at for parameters without gradient


@dataclass(frozen=True)
class ShardedParameter:
    """A parameter of an FSDP module, on this rank.

    Args:
        name: in the model.
        numel: entries of this rank's shard.
        padded: entries that it takes in the vector, the same on all ranks.
        field: torch's ``FSDPParam``.
    """

    name: str
    numel: int
    padded: int
    field: Any

    @property
    def parameter(self) -> Parameter:
        """The sharded parameter, a DTensor, that the optimizer steps over."""
        found: Parameter = self.field.sharded_param
        return found

    @property
    def dim(self) -> int:
        """Dimension along which it is sharded."""
        return int(self.field.fsdp_placement.dim)

    @property
    def local(self) -> Tensor:
        """This rank's shard of it."""
        data = self.parameter.data
        assert isinstance(data, DTensor)
        return data._local_tensor


class ModuleShard:
    """One FSDP module, and how its vector is laid out.

    Args:
        path: of the module in the model.
        module: with one FSDP parameter group.
        group: that group, torch's ``FSDPParamGroup``.
        names: identity of a sharded parameter -> its name in the model.

    Attributes:
        parameters: in the order of the vector.
    """

    def __init__(self, path: str, module: FSDPModule, group: Any, names: Mapping[int, str]) -> None:
        self.path, self.module, self._group = path, module, group
        self.parameters = [
            ShardedParameter(
                names[id(field.sharded_param)], field.sharded_param._local_tensor.numel(),
                field.padded_sharded_param_size.numel(), field,
            )
            for field in group.fsdp_params
        ]  # fmt: skip
        self._plans: dict[tuple[int, tuple[bool, ...]], Plan] = {}
        self._put_off: Tensor | None = None

    # ------------------------------------------------------------------ what torch's settings ask for

    @property
    def synchronizes(self) -> bool:
        """Whether its next backward reduces at all: ``set_requires_gradient_sync``."""
        return bool(self._group.reduce_grads)

    @property
    def exchanges(self) -> bool:
        """Whether its next backward ends in the mean over replicas: ``set_requires_all_reduce`` too."""
        return bool(self._group.reduce_grads and self._group.all_reduce_grads)

    @property
    def sums(self) -> bool:
        """Whether the user has set what to divide by: then the sum over replicas is wanted and not their mean."""
        return self._group.gradient_divide_factor is not None

    @property
    def dtype(self) -> torch.dtype:
        """Of the vector."""
        policy = self._group.mp_policy
        own: torch.dtype = self._group.fsdp_params[0].sharded_param.dtype
        return policy.reduce_dtype or policy.param_dtype or own

    @property
    def unit(self) -> float:
        """What torch divides the vector by after the hook; for float16 it divides in two parts, and sums between."""
        group = self._group
        from torch.distributed.fsdp._fully_shard._fsdp_collectives import _get_gradient_divide_factors

        _, after, _, _ = _get_gradient_divide_factors(
            group._reduce_scatter_process_group,
            None,
            self.dtype,
            group.device.type,
            group.gradient_divide_factor,
            group.force_sum_reduction_for_comms,
        )
        return float(after or 1)

    def has_hook(self, hook: object = None) -> bool:
        """Tell whether it has a hook, or this one."""
        found = self._group._all_reduce_hook
        return found is not None and (hook is None or found is hook)

    # ------------------------------------------------------------------ the vector

    def plan(self, numel: int) -> Plan:
        """Return what lies in a vector of this length.

        Raises:
            RuntimeError: parameters without gradient are left out of it, and the length does not tell which.
        """
        trained = tuple(one.parameter.requires_grad for one in self.parameters)
        plan = self._plans.get((numel, trained))
        if plan is None:
            here = [one for one, wanted in zip(self.parameters, trained, strict=True) if wanted]
            plan = self._plans[numel, trained] = Plan(self._with_gradient(here, numel))
        return plan

    def _with_gradient(self, trained: Sequence[ShardedParameter], numel: int) -> list[ShardedParameter]:
        """Find the parameters that are in a vector: all, or all but those whose lengths alone make up what lacks."""
        missing = sum(one.padded for one in trained) - numel
        ways: dict[int, list[frozenset[int]]] = {0: [frozenset()]}  # sum -> up to two sets of places that have it
        for place, one in enumerate(trained):
            if not one.padded or len(ways) > _MOST_SUMS:
                continue
            for total, sets in list(ways.items()):
                if (more := total + one.padded) <= missing:
                    ways[more] = [*ways.get(more, []), *(known | {place} for known in sets)][:2]
        found = ways.get(missing, [])
        if len(found) != 1 or len(ways) > _MOST_SUMS:
            raise RuntimeError(
                f"every parameter of module {self.path or 'root'!r} must get a gradient, got a vector of {numel} "
                f"entries in place of {numel + missing}, which does not tell whose is missing. Call "
                "model.set_reduce_scatter_unused_params(True), or freeze what is not used."
            )
        return [one for place, one in enumerate(trained) if place not in found[0]]

    def put_off(self, vector: Tensor) -> None:
        """Keep a vector for the exchange of a later backward, and leave zeros in it: torch adds them to ``grad``."""
        self._put_off = vector.clone() if self._put_off is None else self._put_off.add_(vector)
        vector.zero_()

    def take_up(self, vector: Tensor) -> None:
        """Add what was put off.

        Raises:
            RuntimeError: parameters got gradients in one backward and none in another.
        """
        if self._put_off is None:
            return
        if self._put_off.shape != vector.shape:
            raise RuntimeError(
                f"parameters of module {self.path or 'root'!r} must get gradients in all backwards of a step or in "
                f"none, got {vector.numel()} entries after {self._put_off.numel()}. Call "
                "model.set_reduce_scatter_unused_params(True)."
            )
        vector.add_(self._put_off)
        self._put_off = None

    def add_to_grads(self, plan: Plan, mean: Tensor) -> None:
        """Add a mean to the gradients of its parameters, as torch does with the vector after the hook."""
        if (unit := self.unit) != 1:
            mean = mean.div_(unit)
        for one, piece in plan.pieces(mean):
            grad = one.parameter.grad
            assert isinstance(grad, DTensor)  # torch has added the vector's zeros
            local = grad._local_tensor
            local.add_(piece.view(local.shape).to(local.device, local.dtype))


class Plan:
    """What lies in a vector, and what of it is gradient and not padding.

    Args:
        parameters: with gradient, in order.

    Attributes:
        layout: those of which this rank has entries.
    """

    def __init__(self, parameters: Sequence[ShardedParameter]) -> None:
        self.parameters = list(parameters)
        held = [one for one in parameters if one.numel]
        self.layout = Layout(tuple(one.name for one in held), tuple(one.numel for one in held))
        self._places: list[slice] = []  # of the gradients, those that touch in one
        start = 0
        for one in parameters:
            if self._places and self._places[-1].stop == start and one.numel:
                self._places[-1] = slice(self._places[-1].start, start + one.numel)
            elif one.numel:
                self._places.append(slice(start, start + one.numel))
            start += one.padded

    def gradient(self, vector: Tensor) -> Tensor:
        """Return the gradient in a vector, without padding: a view, or a copy where padding lies between."""
        if len(self._places) == 1:
            return vector[self._places[0]]
        return torch.cat([vector[place] for place in self._places]) if self._places else vector[:0]

    def pieces(self, gradient: Tensor) -> Iterator[tuple[ShardedParameter, Tensor]]:
        """Yield each parameter with its part of a gradient, which is empty where other ranks have all of it."""
        start = 0
        for one in self.parameters:
            yield one, gradient[start : start + one.numel]
            start += one.numel

    def write_back(self, gradient: Tensor, vector: Tensor) -> None:
        """Copy a gradient to where ``gradient`` has taken it from, unless it is a view of that."""
        if len(self._places) > 1:
            start = 0
            for place in self._places:
                end = start + place.stop - place.start
                vector[place].copy_(gradient[start:end])
                start = end


# ---------------------------------------------------------------------- is their order what is said here?


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
