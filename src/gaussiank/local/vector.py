"""What local steps exchange of a model: weights beside those agreed on, and the running statistics of norms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gaussiank.comm import Done, Executor
from gaussiank.layout import Layout
from gaussiank.ops import RESIDUAL_DTYPES
from gaussiank.sparse import MAX_NUMEL


class Vector:
    """Some parameters of one dtype and device, with the weights that all workers agreed on last.

    Args:
        parameters: name -> local weights of any shape; read, and written by ``write``.
        home: where the agreed weights lie, None for where the parameters are.

    Attributes:
        layout: which parameters, end to end in the order of their indices.
        device: where the parameters are, and the exchange takes place.
        agreed: ``[numel]`` in the residual's dtype, at home.

    Example:
        >>> weights = torch.tensor([[1.0, 2.0]])
        >>> vector = Vector({"w": weights})
        >>> weights -= 0.5
        >>> vector.difference()
        tensor([0.5000, 0.5000])
    """

    def __init__(self, parameters: Mapping[str, Tensor], home: torch.device | None = None) -> None:
        self._parameters = list(parameters.values())
        first = self._locals[0]
        self.layout = Layout(tuple(parameters), tuple(local.numel() for local in self._locals))
        self.dtype, self.device = RESIDUAL_DTYPES[first.dtype], first.device
        self.agreed = torch.empty(self.layout.numel, dtype=self.dtype, device=home or self.device)
        self.agree()

    @property
    def _locals(self) -> list[Tensor]:
        return [local_part(parameter) for parameter in self._parameters]

    def views(self, flat: Tensor) -> list[Tensor]:
        """View a flat vector as one tensor a parameter, in its shape."""
        places = [place for _, place in self.layout.slices()]
        return [flat[place].view(local.shape) for place, local in zip(places, self._locals, strict=True)]

    def agree(self) -> None:
        """Take the local weights as agreed."""
        for agreed, local in zip(self.views(self.agreed), self._locals, strict=True):
            agreed.copy_(local)

    def local(self) -> Tensor:
        """Return a copy of the local weights, end to end: ``[numel]`` in their dtype."""
        return torch.cat([local.flatten() for local in self._locals])

    def difference(self) -> Tensor:
        """Return the agreed weights less the local ones, ``[numel]`` in the residual's dtype, where the parameters are.

        Agreed weights are taken as a local weight holds them: what bfloat16 rounds off is not a step that was made.
        """
        out = torch.empty(self.layout.numel, dtype=self.dtype, device=self.device)
        for difference, (agreed, local) in zip(self.views(out), self._pairs(), strict=True):
            difference.copy_(agreed.to(local.device, local.dtype)).sub_(local)
        return out

    def load(self, agreed: Mapping[str, Tensor], local: Mapping[str, Tensor]) -> None:
        """Overwrite agreed and local weights by saved ones, flat, by parameter."""
        self.agreed.copy_(flat_of(self, agreed))
        for name, own in zip(self.layout.names, self._locals, strict=True):
            own.copy_(local[name].view(own.shape))

    def write(self, weights: Tensor | None = None) -> None:
        """Overwrite the local weights by the agreed ones, or by others, ``[numel]``."""
        views = self.views(self.agreed if weights is None else weights)
        for view, local in zip(views, self._locals, strict=True):
            local.copy_(view)

    def mix(self, share: float) -> None:
        """Move the local weights towards the agreed ones: ``share * local + (1 - share) * agreed``."""
        for agreed, local in self._pairs():
            local.copy_(torch.lerp(agreed.to(local.device), local.to(self.dtype), share))

    def carry(self, began: Tensor) -> None:
        """Put on the agreed weights what was learnt since the local ones were ``began``, ``[numel]``."""
        for (agreed, local), before in zip(self._pairs(), self.views(began), strict=True):
            local.copy_(agreed.to(local.device) + (local.to(self.dtype) - before.to(self.dtype)))

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.views(self.agreed), self._locals, strict=True)


def local_part(parameter: Tensor) -> Tensor:
    """Return what this process holds of a parameter: all of it, or its shard of a ``DTensor``; shares memory."""
    held: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return held.detach()


def split(parameters: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Cut parameters, in their order, into ``count`` groups of about as many entries, none of them empty.

    Example:
        >>> sizes = {"a": torch.zeros(3), "b": torch.zeros(1), "c": torch.zeros(4)}
        >>> [list(group) for group in split(sizes, 2)]
        [['a', 'b'], ['c']]
    """
    total = sum(local_part(one).numel() for one in parameters.values())
    groups: list[dict[str, Tensor]] = [{}]
    passed = 0
    for left, (name, parameter) in zip(range(len(parameters), 0, -1), parameters.items(), strict=True):
        numel = local_part(parameter).numel()
        wanted = count - len(groups)  # groups that are still to begin
        # a group ends where its share of all entries is nearer without the next parameter, or the rest must be spread
        full = 2 * passed + numel > 2 * total * len(groups) / count
        if groups[-1] and wanted and (full or left <= wanted):
            groups.append({})
        groups[-1][name] = parameter
        passed += numel
    return groups


def vectors_of(parameters: Mapping[str, Tensor], home: torch.device | None = None) -> list[Vector]:
    """Lay parameters into as few vectors as their dtypes, devices and the positions in a vector allow."""
    runs: list[dict[str, Tensor]] = []
    key, numel = None, 0
    for name, parameter in parameters.items():
        local = local_part(parameter)
        own = (local.dtype, local.device)
        if own != key or numel + local.numel() > MAX_NUMEL:
            runs.append({})
            key, numel = own, 0
        runs[-1][name] = parameter
        numel += local.numel()
    return [Vector(run, home) for run in runs]


def by_name(vectors: Sequence[Vector], flats: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return copies of the parts of some flat vectors, by parameter; nothing of no vectors."""
    return {
        name: flat[place].clone()
        for vector, flat in zip(vectors, flats, strict=False)
        for name, place in vector.layout.slices()
    }


def flat_of(vector: Vector, parts: Mapping[str, Tensor]) -> Tensor:
    """Undo ``by_name`` for one vector, where its parameters are."""
    return torch.cat([parts[name].to(vector.device) for name in vector.layout.names])


def norm_of(vectors: Sequence[Tensor]) -> float:
    """Return the norm of some vectors together, infinity or NaN where an entry is not finite.

    Squares are added in float32, which is a tenth of the time; where that overflows or vanishes, in float64.
    """
    vectors = [one.flatten().to(torch.promote_types(one.dtype, torch.float32)) for one in vectors]
    fast = math.sqrt(sum(float(torch.dot(one, one)) for one in vectors))
    if 1e-15 < fast < math.inf:
        return fast
    norms = [torch.linalg.vector_norm(one, dtype=torch.float64) for one in vectors]
    return float(torch.linalg.vector_norm(torch.stack([norm.cpu() for norm in norms])))


@torch.no_grad()
def broadcast(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Overwrite a module's parameters and buffers by those of the group's first worker; call it on every worker."""
    source = dist.get_process_group_ranks(group)[0]
    for one in (*module.parameters(), *module.buffers()):
        held = local_part(one)
        whole = held.contiguous()
        dist.broadcast(whole, source, group=group)
        held.copy_(whole)


# ---------------------------------------------------------------------- running statistics


class RunningStatistics:
    """Average what batch norm layers have counted; other buffers stay each worker's own.

    Args:
        module: whose layers.

    Attributes:
        mean: ``[numel + 1]`` sums over workers and their count, over the world size, once they have arrived; else what
            is on its way, or None.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = [layer for layer in module.modules() if isinstance(layer, _NormBase)]
        self.mean: Tensor | None = None
        self._under_way: Done | None = None

    @property
    def _buffers(self) -> list[Tensor]:
        return [
            buffer for layer in self._layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None
        ]

    def send(self, executor: Executor, step: int, *, left_out: bool) -> None:
        """Start the mean; ``left_out``: without this worker's."""
        buffers = self._buffers
        if not buffers:
            return
        wide = torch.float64 if any(one.dtype == torch.float64 for one in buffers) else torch.float32
        one = torch.ones(1, dtype=wide, device=buffers[0].device)
        self.mean = torch.cat([*(buffer.flatten().to(one) for buffer in buffers), one])
        if left_out:
            self.mean.zero_()
        label = f"the running statistics of step {step}"
        self._under_way = executor.average(lambda: label, self.mean, lambda _: None)

    def arrive(self) -> None:
        """Wait for the mean."""
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None

    def land(self) -> None:
        """Overwrite the statistics by their mean."""
        self.arrive()
        mean, self.mean = self.mean, None
        if mean is None or not mean[-1]:
            return
        mean = mean[:-1] / mean[-1]
        buffers = self._buffers
        for buffer, part in zip(buffers, mean.split([one.numel() for one in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))
