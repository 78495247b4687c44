"""The compression of a DDP model, from the door to the hook that leads each of DDP's buckets onto its reducer."""
# No `from __future__ import annotations` here: DDP reads the annotations of the hook as types.

import logging
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket  # torch.distributed shows it at run time only, not to type checkers
from torch.nn.parallel import DistributedDataParallel

from gaussiank.comm import Done, Promise, then, together
from gaussiank.compression import Compression
from gaussiank.feedback import OptimizerUse
from gaussiank.layout import Layout, Strides, strides_in_memory
from gaussiank.metrics import Observer
from gaussiank.ops import RESIDUAL_DTYPES
from gaussiank.reducer import GradientReducer, Scope, Settings, output_dimensions

from .acceptance import ddp_of, require_reducible
from .buckets import BACKWARDS, FlatBucket, Names, SavedBuckets, next_buckets
from .copies import CopiedCompression, copy_of, drop_copies

_LOG = logging.getLogger(__name__)


class DDPCompression(Compression):
    """The compression of a DDP model.

    A copy or a pickle of it, alone or with its model, holds settings only, and the model's copy is a plain DDP model:
    call ``compress`` on that to compress it, and save residuals with ``state_dict``.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        settings: Settings,
        *,
        scaler: torch.amp.GradScaler | None = None,
        observer: Observer | None = None,
    ) -> None:
        numels = _checked_numels(model)
        self._configure(settings, numels, model.process_group, observer)
        named = dict(model.module.named_parameters())
        self._use = OptimizerUse(named)
        self._reducer = GradientReducer(
            {name: parameter.shape for name, parameter in named.items()},
            settings,
            group=model.process_group,
            observer=observer,
            use=self._use,
            device=next(model.parameters()).device,
        )
        if observer:
            observer.attach(self.config, numels, self._reducer.feedback, model.process_group)
        self._model = weakref.ref(model)
        self._whole_model = settings.scope == "model"
        self._scaler = scaler
        self._unused_possible = bool(model.find_unused_parameters or model.static_graph)
        self._names = {id(parameter): name for name, parameter in named.items()}
        self._layouts: dict[tuple[int, ...], Layout] = {}
        # DDP lays gradients out in its buckets when it is constructed, and may do so anew before the second backward
        self._strides: dict[str, Strides] | None = {name: strides_in_memory(one) for name, one in named.items()}
        self._rebuilds = model.static_graph or not model.find_unused_parameters
        self._backwards = 0
        self._waiting: list[tuple[FlatBucket, Promise]] = []
        self._buckets: list[Names] = []  # as they were last built
        self._saved: SavedBuckets | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return copy_of(self.config, self.step, self._model())  # process groups cannot be copied

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """Return this worker's residuals, velocities, hints and step. Each worker must save its own: ``save`` does.

        Between a backward and the optimizer's step it holds what was before that backward, as the weights do; where no
        optimizer of torch was ever seen to step, the backward counts as used. It also holds which parameters lie in
        which of DDP's buckets, which a fresh process takes its first step by.

        Tensors are copies; ``torch.load(..., weights_only=True)`` reads what ``torch.save`` makes of it.
        """
        if self._saved is not None:
            buckets = list(self._saved.saved)
        elif self._backwards == 1 and self._rebuilds:
            buckets = self._next_buckets()
        else:
            buckets = self._buckets
        return {**super().state_dict(), "buckets": [list(names) for names in buckets]}

    def _next_buckets(self) -> list[Names]:
        """Return what DDP will make of the buckets of the first backward, or as they are if that cannot be told."""
        model = self._model()
        if model is None or model.static_graph:
            return self._buckets
        named, own = dict(model.module.named_parameters()), {name for names in self._buckets for name in names}
        arrived = [(name, named[name]) for name in self._use.arrived if name in own]
        return next_buckets(model, arrived) if len(arrived) == len(own) else self._buckets

    def _require_fitting(self, state: Mapping[str, Any]) -> None:
        super()._require_fitting(state)
        buckets = state.get("buckets", [])
        if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in buckets):
            raise ValueError("buckets of the state must be lists of names, got others. Load the state as it was saved.")

    def _load(self, state: Mapping[str, Any]) -> None:
        # rank 0's, as with DDP's own: older states have none
        buckets = together(lambda: state.get("buckets", []), self._group, what="load")[0]
        super()._load(state)
        self._saved = SavedBuckets([tuple(names) for names in buckets]) if buckets else None

    # ------------------------------------------------------------------ the buckets of one backward

    def reduce(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Start the exchange of one bucket, as DDP's hook; the future holds its buffer with the mean."""
        if torch.is_grad_enabled():  # not in an ordinary backward
            with torch.no_grad():
                return self.reduce(bucket)
        if bucket.index() == 0:  # DDP starts buckets in order
            self._waiting = []
            self._backwards += 1
            if self._backwards == 2 and self._rebuilds:
                self._strides, self._layouts = None, {}
            if self._backwards <= BACKWARDS:
                self._buckets = []
            if self._saved is not None and not self._saved.begin():
                self._saved = None
            self._reducer.begin(scale=self._scaler.get_scale() if self._scaler else 1.0)
        future = self._start(bucket)
        if bucket.is_last():
            if self._saved is not None and (parted := self._saved.part()):
                _LOG.info("step %d takes the %d buckets of the run that saved", self.step, len(parted))
                self._saved.fulfil([self._exchange(one) for one in parted])
            if self._waiting:
                self._reduce_waiting()
            self._reducer.seal()
        return future

    def _start(self, bucket: FlatBucket) -> torch.futures.Future[Tensor]:
        grad = bucket.buffer()
        if grad.is_sparse:
            return self._reducer.pass_through(grad)
        if not grad.numel():  # of an empty parameter that is alone in its bucket
            (empty := Promise(grad.device)).set_result(grad)
            return empty.future
        if self._backwards <= BACKWARDS:
            self._buckets.append(self._layout([bucket]).names)
        if self._saved is not None and (held := self._saved.hold(bucket, self._layout([bucket]))) is not None:
            return held
        return self._exchange(bucket)

    def _exchange(self, bucket: FlatBucket) -> Done:
        grad = bucket.buffer()
        if self._whole_model and not self._reducer.dense:
            self._waiting.append((bucket, Promise(grad.device)))
            return self._waiting[-1][1].future
        if (done := self._reducer.repeat(lambda: self._layout([bucket]), grad)) is not None:
            return done
        if self._reducer.dense:
            held = self._without_gradient([bucket], [grad])
            return self._reducer.reduce_dense(lambda: self._layout([bucket]), grad, held)
        held = self._without_gradient([bucket], [grad]) if self._unused_possible else []
        return self._reducer.reduce_sparse(self._layout([bucket]), [grad], held)

    def _reduce_waiting(self) -> None:
        """Exchange the whole model at once, and hand each bucket its own part when it has arrived."""
        waiting, self._waiting = self._waiting, []
        buckets = [bucket for bucket, _ in waiting]
        grads = [bucket.buffer() for bucket in buckets]
        held = self._without_gradient(buckets, grads)

        def hand_out(done: Done) -> None:
            def own(grad: Tensor) -> Tensor:
                done.value()  # raises what the exchange has raised
                return grad

            for (_, promise), grad in zip(waiting, grads, strict=True):
                promise.set_from(partial(own, grad))

        then(self._reducer.reduce_sparse(self._layout(buckets), grads, held), hand_out)

    def _layout(self, buckets: list[FlatBucket]) -> Layout:
        # by parameter: after DDP rebuilds its buckets, one can have the same size and its parameters reversed
        parameters = [parameter for bucket in buckets for parameter in bucket.parameters()]
        key = tuple(map(id, parameters))
        layout = self._layouts.get(key)
        if layout is None:
            names, numels = [self._names[one] for one in key], [parameter.numel() for parameter in parameters]
            strides = [self._strides_of(parameter) for parameter in parameters]
            layout = Layout(tuple(names), tuple(numels), tuple(strides) if any(strides) else ())
            self._layouts[key] = layout
        return layout

    def _strides_of(self, parameter: Tensor) -> Strides:
        return self._strides[self._names[id(parameter)]] if self._strides else strides_in_memory(parameter)

    def _without_gradient(self, buckets: list[FlatBucket], grads: list[Tensor]) -> list[slice]:
        """Find the parameters without gradient: DDP drops what comes back for one that no worker used."""
        if not self._unused_possible:
            return []
        grad = grads[0] if len(grads) == 1 else torch.cat(grads)
        return [place for _, place in self._layout(buckets).slices() if not bool(grad[place].any())]


def require_no_hook(model: DistributedDataParallel) -> None:
    """Raise when the model has a communication hook.

    Raises:
        RuntimeError: so it is.
    """
    hooks = [state for _, state in getattr(model, "_comm_hooks", ()) if not isinstance(state, CopiedCompression)]
    if hooks or model._get_ddp_logging_data().get("comm_hook"):  # one that is built into DDP stands there alone
        raise RuntimeError(
            "model must have no communication hook yet, got one that has a hook. Call compress once for each "
            "DistributedDataParallel, and register no other hook on it."
        )


def _checked_numels(model: DistributedDataParallel) -> dict[str, int]:
    numels: dict[str, int] = {}
    for name, parameter in model.module.named_parameters():
        if parameter.requires_grad and parameter.dtype not in RESIDUAL_DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in RESIDUAL_DTYPES)
            raise ValueError(
                f"dtype of parameter {name} must be one of {known}, got {parameter.dtype}. Freeze or convert it."
            )
        numels[name] = parameter.numel()
    return numels


# ---------------------------------------------------------------------- the door


# No `from __future__ import annotations` here: DDP reads the annotations of the hook as types.


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

    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Return the dimensions that tell outputs of a parameter apart, where these are others than the first."""
        return output_dimensions(self._ddp.module)

    def register(
        self, settings: Settings, scaler: torch.amp.GradScaler | None, observer: Observer | None
    ) -> Compression:
        """Compress it: register the hook."""
        compression = DDPCompression(self._ddp, settings, scaler=scaler, observer=observer)
        drop_copies(self._ddp)
        self._ddp.register_comm_hook(compression, DDPCompression.reduce)
        return compression

    def exchange_check(self) -> Callable[[], bool]:
        """Return what tells whether the last forward was one whose backward exchanges gradients."""
        return partial(_exchanges, weakref.ref(self._ddp))


def _exchanges(model: weakref.ReferenceType[DistributedDataParallel]) -> bool:
    """Tell whether the model's last forward was one whose backward exchanges gradients, not one in ``no_sync``."""
    alive = model()
    return alive is not None and bool(alive.require_forward_param_sync)


hook = DDPCompression.reduce
"""DDP's hook, by the name that pickles of whole models have had for it."""
