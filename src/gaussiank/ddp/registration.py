"""A DDP model at the door: what ``compress`` asks of it, and the hook that it registers with DDP."""
# No `from __future__ import annotations` here: DDP reads the annotations of the hook as types.

import weakref
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket  # torch.distributed shows it at run time only, not to type checkers
from torch.nn.parallel import DistributedDataParallel

from gaussiank.compression import Compression
from gaussiank.metrics import Observer
from gaussiank.reducer import Scope, Settings

from .acceptance import ddp_of, require_reducible
from .copies import drop_copies
from .state import DDPCompression, require_no_hook


class DDPDoor:
    """A model wrapped in ``DistributedDataParallel``, or what ``torch.compile`` has made of one.

    Args:
        model: not yet compressed.

    Attributes:
        group: the process group that its gradients are averaged over.
        parameters: all of them; as long, of the dtype and on the device of what comes to the hook.
        gradients: the same.
        trained: how many of them get a gradient.

    Raises:
        ValueError: no such model.
        RuntimeError: it has a communication hook already.
    """

    def __init__(self, model: nn.Module) -> None:
        self._ddp = ddp_of(model)
        require_no_hook(self._ddp)
        self.group: dist.ProcessGroup = self._ddp.process_group
        self.parameters = self.gradients = list(self._ddp.parameters())
        self.trained = sum(parameter.requires_grad for parameter in self._ddp.module.parameters())

    def require_reducible(self, scope: Scope, *, sends_all: bool) -> None:
        """Refuse a model whose gradients do not come to a hook, or are too long; see ``acceptance``."""
        require_reducible(self._ddp, scope, sends_all=sends_all)

    def register(
        self, settings: Settings, scaler: torch.amp.GradScaler | None, observer: Observer | None
    ) -> Compression:
        """Compress it: register the hook."""
        compression = DDPCompression(self._ddp, settings, scaler=scaler, observer=observer)
        drop_copies(self._ddp)
        self._ddp.register_comm_hook(compression, hook)
        return compression

    def exchange_check(self) -> Callable[[], bool]:
        """Return what tells whether the last forward was one whose backward exchanges gradients."""
        return partial(_exchanges, weakref.ref(self._ddp))


def _exchanges(model: weakref.ReferenceType[DistributedDataParallel]) -> bool:
    """Tell whether the model's last forward was one whose backward exchanges gradients, not one in ``no_sync``."""
    alive = model()
    return alive is not None and bool(alive.require_forward_param_sync)


def hook(state: DDPCompression, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Reduce one bucket; what ``compress`` registers with DDP."""
    if torch.is_grad_enabled():  # not in an ordinary backward
        with torch.no_grad():
            return state.reduce(bucket)
    return state.reduce(bucket)
