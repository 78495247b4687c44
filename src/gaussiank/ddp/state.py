"""The state of one compressed model: leads each of DDP's buckets onto its reducer."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import GradBucket  # torch.distributed shows it at run time only, not to type checkers
from torch.nn.parallel import DistributedDataParallel

from gaussiank import __version__, checkpoint
from gaussiank.collectives import Collective
from gaussiank.comm import Done, Promise, await_all, require_agreement, then, together
from gaussiank.feedback import ErrorFeedback, OptimizerUse
from gaussiank.layout import Layout, Strides, strides_in_memory
from gaussiank.metrics import Metrics, Observer
from gaussiank.ops import RESIDUAL_DTYPES
from gaussiank.reducer import GradientReducer, Settings

from .copies import CopiedCompression, copy_of, text_of


class Compression:
    """The state of one compressed model: residuals, hints, step, measurements. Made by ``compress``.

    A copy or a pickle of it, alone or with its model, holds settings only, and the model's copy is a plain DDP model:
    call ``compress`` on that to compress it, and save residuals with ``state_dict``.

    Attributes:
        config: the settings, which all workers share.
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
        self.config: Mapping[str, object] = {
            "gaussiank version": __version__,
            **settings.agreed(),
            "recorder": observer and observer.settings,  # it may communicate: every worker needs it
            "model parameters": numels,
        }
        await_all(model.process_group)
        require_agreement(self.config, model.process_group)
        named = dict(model.module.named_parameters())
        self._group = model.process_group
        self._reducer = GradientReducer(
            {name: parameter.shape for name, parameter in named.items()},
            settings,
            group=model.process_group,
            observer=observer,
            use=OptimizerUse(dict(model.module.named_parameters())),
        )
        if observer:
            observer.attach(self.config, numels, self._reducer.feedback, model.process_group)
        self._model = weakref.ref(model)
        self._whole_model = settings.scope == "model"
        self._scaler = scaler
        self._unused_possible = bool(model.find_unused_parameters or model.static_graph)
        self._names = {id(parameter): name for name, parameter in named.items()}
        self._layouts: dict[tuple[int, ...], Layout] = {}
        # DDP decides when it is made how gradients lie in its buckets, and once more before the second backward
        self._strides: dict[str, Strides] | None = {name: strides_in_memory(one) for name, one in named.items()}
        self._rebuilds = model.static_graph or not model.find_unused_parameters
        self._backwards = 0
        self._waiting: list[tuple[GradBucket, Promise]] = []
        self._resumed = False

    def __repr__(self) -> str:
        return text_of(self.config, self.step)

    def __reduce__(self) -> tuple[Any, ...]:
        return copy_of(self.config, self.step, self._model())  # process groups cannot be copied

    @property
    def stands_by(self) -> bool:
        """False; deprecated: the hook stays registered while ``auto`` is dense."""
        warnings.warn(
            "stands_by is always False since the hook stays on: leave it out.", DeprecationWarning, stacklevel=2
        )
        return False

    @property
    def metrics(self) -> Metrics:
        """Measurements of the last step; complete once its backward has returned."""
        return self._reducer.measured

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self._reducer.step

    @property
    def resumed(self) -> bool:
        """Whether a state was loaded. Without one, an optimizer that has a state already is warned of."""
        return self._resumed

    @property
    def density(self) -> float:
        """Density of the next step."""
        return self._reducer.density

    @property
    def collective(self) -> Collective:
        """How workers agree; an ``Auto`` tells the ``link`` that it knows, and the ``way`` that proved faster."""
        return self._reducer.collective

    @property
    def feedback(self) -> ErrorFeedback:
        """The residuals, with those of the last step committed."""
        self._reducer.feedback.settle()
        return self._reducer.feedback

    def discard(self) -> None:
        """Forget the last backward, in place of an optimizer's step: residuals and ``step`` are as before it.

        Call it on every worker. A mean that is zeroed or set to None before any optimizer of torch has stepped is
        forgotten without it; an optimizer that uses a mean only to find another point, as SAM does, needs it.

        Raises:
            RuntimeError: an optimizer has used the mean.
        """
        self._reducer.discard()

    def save(self, folder: str | Path) -> None:
        """Write the residuals of every worker, with velocities, hints and step, to a folder: all of them, or nothing.

        Call it on every worker, between two steps, beside saving model and optimizer; it may be the same folder.

        Args:
            folder: created if need be; one that every worker sees. What was saved there before is replaced, whole at
                any moment; other files stay.

        Raises:
            OSError: a worker could not write; the same on all, and nothing has changed.
            RuntimeError: a worker does not call it.

        Example:
            >>> import tempfile
            >>> import torch.distributed as dist
            >>> from gaussiank import compress
            >>> folder = tempfile.mkdtemp()
            >>> dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
            >>> model = DistributedDataParallel(torch.nn.Linear(100, 10))
            >>> compression = compress(model, density=0.01)
            >>> model(torch.ones(1, 100)).sum().backward()
            >>> compression.save(f"{folder}/residuals")
            >>> compression.load(f"{folder}/residuals")
            >>> compression.step
            1
            >>> dist.destroy_process_group()
        """
        checkpoint.save(self.state_dict(), folder, self._group)

    def load(self, folder: str | Path) -> None:
        """Go on where ``save`` was called, on every worker or on none.

        Call it on every worker, when the model is wrapped and compressed. Saved by another number of workers, the
        residuals are shared out anew by ``gaussiank.reshard``.

        Args:
            folder: given to ``save``.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: a file is missing or damaged, to the bit, or of another model; the same on all workers, and
                nothing has changed on any.
            RuntimeError: a worker does not call it.
        """
        self._reducer.load_state_dict(checkpoint.load(folder, self._reducer.require_fitting, self._group))
        self._resumed = True

    def state_dict(self) -> dict[str, Any]:
        """Return this worker's residuals, velocities, hints and step. Each worker must save its own: ``save`` does.

        Between a backward and the optimizer's step it holds what was before that backward, as the weights do; where no
        optimizer of torch was ever seen to step, the backward counts as used.

        Tensors are copies; ``torch.load(..., weights_only=True)`` reads what ``torch.save`` makes of it.
        """
        return self._reducer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; nothing changes on any worker when it does not fit on one.

        Call it on every worker.

        Raises:
            ValueError: another format, another rank or number of workers, or another model; the same on all workers.
            RuntimeError: a worker does not call it.
        """

        def fitting_step() -> int:
            self._reducer.require_fitting(state)
            return int(state["step"])

        checkpoint.require_one(together(fitting_step, self._group, what="load_state_dict"), "step")
        self._reducer.load_state_dict(state)
        self._resumed = True

    # ------------------------------------------------------------------ the buckets of one backward

    def reduce(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Start the exchange of one bucket; the future holds its buffer with the mean."""
        if bucket.index() == 0:  # DDP starts buckets in order
            self._waiting = []
            self._backwards += 1
            if self._backwards == 2 and self._rebuilds:
                self._strides, self._layouts = None, {}
            self._reducer.begin(scale=self._scaler.get_scale() if self._scaler else 1.0)
        future = self._start(bucket)
        if bucket.is_last():
            if self._waiting:
                self._reduce_waiting()
            self._reducer.seal()
        return future

    def _start(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        grad = bucket.buffer()
        if grad.is_sparse:
            return self._reducer.pass_through(grad)
        if not grad.numel():  # of an empty parameter that is alone in its bucket
            (empty := Promise(grad.device)).keep(grad)
            return empty.future
        if self._whole_model and not self._reducer.dense:
            self._waiting.append((bucket, Promise(grad.device)))
            return self._waiting[-1][1].future
        if (done := self._reducer.repeat(lambda: self._layout([bucket]), grad)) is not None:
            return done
        if self._reducer.dense:
            held = self._without_gradient([bucket], [grad])
            return self._reducer.reduce_dense(lambda: self._layout([bucket]), grad, held)
        return self._reducer.reduce_sparse(self._layout([bucket]), [grad], self._without_gradient([bucket], [grad]))

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
                promise.attempt(partial(own, grad))

        then(self._reducer.reduce_sparse(self._layout(buckets), grads, held), hand_out)

    def _layout(self, buckets: list[GradBucket]) -> Layout:
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

    def _without_gradient(self, buckets: list[GradBucket], grads: list[Tensor]) -> list[slice]:
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
