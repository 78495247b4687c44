"""An FSDP2 model at the door: what ``compress`` asks of it, and how it is given its hooks."""

from __future__ import annotations

import hashlib
import warnings
import weakref
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from gaussiank.compression import Compression
from gaussiank.metrics import Observer
from gaussiank.reducer import Scope, Settings

from .acceptance import require_mesh, require_reducible, sharded_modules
from .shard import ModuleShard
from .state import FSDPCompression


class FSDPDoor:
    """A model of ``fully_shard``, or what ``torch.compile`` has made of one.

    Args:
        model: not yet compressed.
        mesh: with the dimensions ``replicate`` and ``shard``; the model is sharded over the second.

    Attributes:
        group: the process group that its gradients are averaged over: this rank's replicas.
        parameters: all of them, as the optimizer knows them.
        gradients: as long with their padding, of the dtype and on the device of what comes to the hook, without memory;
            the same on every worker.
        trained: how many of them get a gradient.

    Raises:
        ValueError: no such model, or no such mesh.
        RuntimeError: it has a hook already.
    """

    def __init__(self, model: nn.Module, mesh: object) -> None:
        self._mesh = require_mesh(mesh)
        self._model = getattr(model, "_orig_mod", model)
        self._shards = sharded_modules(self._model, self._mesh)
        self.group: dist.ProcessGroup = self._mesh.get_group(0)
        held = [(shard, one) for shard in self._shards for one in shard.parameters]
        self.parameters = [one.parameter for _, one in held]
        self.gradients = [
            torch.empty(1, dtype=shard.dtype, device=self._mesh.device_type).expand(one.padded) for shard, one in held
        ]
        self.trained = sum(parameter.requires_grad for parameter in self.parameters)

    def require_reducible(self, scope: Scope, *, sends_all: bool) -> None:
        """Refuse parameters whose gradients cannot be kept, or are too long; see ``acceptance``."""
        require_reducible(self._shards, scope, sends_all=sends_all)

    def register(
        self, settings: Settings, scaler: torch.amp.GradScaler | None, observer: Observer | None
    ) -> Compression:
        """Compress it: make replicas alike, as DDP does, and set the hooks.

        Raises:
            ValueError: momentum correction is to clip, by norms that no worker knows, or workers differ.
            RuntimeError: this torch hands gradients over in another order.
        """
        if settings.momentum is not None and settings.momentum.clip_norm is not None and self._mesh.size(1) > 1:
            raise ValueError(
                f"clip_norm of momentum must be None for a sharded model, got {settings.momentum.clip_norm}. Write "
                "compress(..., clip_norm=...), which sums the norm over shards."
            )
        compression = FSDPCompression(self._model, self._shards, self._mesh, settings, scaler=scaler, observer=observer)
        make_alike(self._shards, self.group)
        if self._mesh.size(0) == 1 < self._mesh.size(1) and dist.get_rank() == 0:
            warnings.warn(
                f"nothing is compressed on a mesh of one replica with {self._mesh.size(1)} shards: inside the shard "
                "group FSDP2 sends dense gradients, and there is no other group to send to; what is not selected waits "
                "all the same. Give the mesh more replicas, or leave gaussiank.compress out.",
                stacklevel=3,
            )
        self._compression = weakref.ref(compression)
        return compression

    def exchange_check(self) -> Callable[[], bool]:
        """Return what tells whether the last forward was one whose backward exchanges gradients."""
        return partial(_exchanges, self._compression)


def _exchanges(compression: weakref.ReferenceType[FSDPCompression]) -> bool:
    alive = compression()
    return alive is not None and alive.exchanging()


@torch.no_grad()
def make_alike(shards: list[ModuleShard], group: dist.ProcessGroup) -> None:
    """Give every replica the parameters of the first, where they differ: nobody else does, on a mesh of shards alone.

    Args:
        shards: of this rank.
        group: its replicas, each of which must call this.
    """
    digest = hashlib.sha256()
    held = [one.local for shard in shards for one in shard.parameters]
    for local in held:
        digest.update(local.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    digests = [""] * dist.get_world_size(group)
    dist.all_gather_object(digests, digest.hexdigest(), group=group)
    if len(set(digests)) > 1:
        for local in held:
            dist.broadcast(local, group=group, group_src=0)
