"""The only file that knows DDP: registers the hook, and leads each bucket onto its journey."""
# No `from __future__ import annotations` here: DDP reads the annotations of the hook as types.

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch._C._distributed_c10d import GradBucket  # torch.distributed shows it at run time only, not to type checkers
from torch.nn.parallel import DistributedDataParallel

from gaussiank import __version__
from gaussiank.codec import Wire, chosen_wire, entries_of_any_bucket
from gaussiank.collectives import Collective, Done, Promise, parse_collective, require_agreement
from gaussiank.companions import look_at_companions
from gaussiank.compressors import Capped, Compressor, parse_compressor
from gaussiank.feedback import ErrorFeedback
from gaussiank.journey import Journey
from gaussiank.layout import Layout
from gaussiank.metrics import Metrics
from gaussiank.momentum import MomentumCorrection
from gaussiank.observer import Observer
from gaussiank.ops import RESIDUAL_DTYPES
from gaussiank.schedule import Constant, Schedule, describe, require_density
from gaussiank.selector import Scope, require_scope

OnNonfinite = Literal["propagate", "raise"]


def compress(
    model: DistributedDataParallel,
    density: float | Schedule = 0.001,
    *,
    compressor: str | Compressor = "topk",
    scope: Scope = "bucket",
    momentum: MomentumCorrection | None = None,
    max_bytes: int | None = None,
    on_nonfinite: OnNonfinite = "propagate",
    scaler: torch.amp.GradScaler | None = None,
    collective: str | Collective = "allgather",
    wire: str | Wire | None = None,
    timeout_s: float = 300.0,
    recorder: Observer | None = None,
) -> "Compression":
    """Make a DDP model exchange sparse gradients with error feedback instead of dense ones.

    Call it once, on every worker, after wrapping the model and before the first backward; the training loop stays as it
    is. Communication overlaps with backward, bucket by bucket.

    Args:
        model: model wrapped in ``DistributedDataParallel``, on Gloo or NCCL, without another communication hook.
        density: share of entries to send, in (0, 1], or a schedule of it; a larger one sends more and delays less.
        compressor: which entries: a name, ``name:field=value``, or a compressor. The default is exact Top_k.
        scope: where k is counted: on each DDP ``bucket``, on each parameter (``layer``), or on the whole ``model`` (the
            paper's setting; waits for the end of backward).
        momentum: DGC's momentum correction and local clipping; set the optimizer's momentum to 0 with it.
        max_bytes: largest payload of a message in bytes; what is cut stays in the residual.
        on_nonfinite: an infinite or NaN gradient is passed on to every worker's gradients and changes no residual
            (``propagate``, what a ``GradScaler`` needs), or ends backward on every worker with the parameter's name
            (``raise``).
        scaler: the ``GradScaler`` of a float16 run: residuals are rescaled when its scale changes. Without it, a
            residual keeps the unit of the scale that it was computed with.
        collective: how workers agree on the mean: a name, ``name:field=value``, or a collective. ``allgather`` sends
            every selection to everyone; with many workers ``split`` sends less.
        wire: how entries travel: ``index+values`` or a ``codec.Wire``. The default is ``rice+bf16`` on a CPU, at
            most 29 bits an entry at density 0.001, and ``chunks+bf16`` elsewhere, 32 bits and no wait for the device.
            What rounding takes off stays in the residual; ``raw+fp32`` rounds nothing. ``randomk:shared=true`` sends
            no indices with ``allgather`` and ``leader``, whatever the index code.
        timeout_s: seconds after which an exchange fails that a worker did not answer, above 0; larger than any pause
            that one worker takes alone between two backwards, for an evaluation or a checkpoint. The first two steps
            also wait for DDP itself, which has the process group's own time-out.
        recorder: watches gradients, residuals and selections, ``Recorder("runs/mine")`` for example; changes nothing.

    Returns:
        The compression: ``metrics`` of the last step, ``state_dict`` and ``load_state_dict`` for checkpoints.

    Raises:
        ValueError: an argument out of its range, a parameter of a dtype without a residual, or workers that are
            configured differently.
        RuntimeError: the model has a communication hook already.

    An optimizer with momentum beside a ``MomentumCorrection`` is refused when it takes its first step, and a
    ``GradScaler`` that is in use but not given is warned of.

    Source: Shi et al. 2019, "Understanding Top-k Sparsification in Distributed Deep Learning", equation 2 (TopK-SGD
    with error compensation). Differs: k is counted on each bucket by default, on the whole model in the paper.

    Example:
        >>> import tempfile
        >>> import torch.distributed as dist
        >>> store = f"file://{tempfile.mkdtemp()}/store"
        >>> dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        >>> model = DistributedDataParallel(torch.nn.Linear(100, 10))
        >>> compression = compress(model, density=0.01)
        >>> model(torch.ones(1, 100)).sum().backward()
        >>> compression.metrics.kept, compression.metrics.numel
        (10, 1010)
        >>> dist.destroy_process_group()
    """
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f"model must be wrapped in DistributedDataParallel, got {type(model).__name__}. "
            "Wrap it first: gaussiank.compress(DistributedDataParallel(model))."
        )
    if getattr(model, "_comm_hooks", ()):
        raise RuntimeError(
            "model must have no communication hook yet, got one that has a hook. Call compress once for each "
            "DistributedDataParallel, and register no other hook on it."
        )
    if on_nonfinite not in ("propagate", "raise"):
        raise ValueError(f"on_nonfinite must be propagate or raise, got {on_nonfinite!r}. Choose one of them.")
    require_scope(scope)
    if isinstance(compressor, str):
        compressor = parse_compressor(compressor)
    wire = chosen_wire(wire, model.parameters())
    if max_bytes is not None:
        compressor = Capped(compressor, entries_of_any_bucket(wire, max_bytes, model.parameters()))
    if not timeout_s > 0:
        raise ValueError(f"timeout_s must be above 0, got {timeout_s}. 300 waits for five minutes.")
    compression = Compression(
        model,
        schedule=density if callable(density) else Constant(require_density(density)),
        compressor=compressor,
        scope=scope,
        momentum=momentum,
        on_nonfinite=on_nonfinite,
        scaler=scaler,
        collective=parse_collective(collective) if isinstance(collective, str) else collective,
        wire=wire,
        timeout_s=timeout_s,
        observer=recorder,
    )
    model.register_comm_hook(compression, hook)
    has_residual = compressor.keeps_rest and not compressor.sends_all
    look_at_companions(compression, model.parameters(), momentum, scaler, has_residual=has_residual)
    return compression


def hook(state: "Compression", bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Reduce one bucket; what ``compress`` registers with DDP."""
    if torch.is_grad_enabled():  # not in an ordinary backward
        with torch.no_grad():
            return state.reduce(bucket)
    return state.reduce(bucket)


class Compression:
    """The state of one compressed model: residuals, hints, step, measurements. Made by ``compress``.

    Attributes:
        config: the settings, which all workers share.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        *,
        schedule: Schedule,
        compressor: Compressor,
        scope: Scope,
        momentum: MomentumCorrection | None,
        on_nonfinite: OnNonfinite,
        scaler: torch.amp.GradScaler | None = None,
        collective: Collective,
        wire: Wire,
        timeout_s: float,
        observer: Observer | None = None,
    ) -> None:
        numels = _checked_numels(model)
        self.config: Mapping[str, object] = {
            "gaussiank version": __version__,
            "density": describe(schedule),
            "compressor": compressor,
            "scope": scope,
            "momentum": momentum,
            "on_nonfinite": on_nonfinite,
            "collective": collective,
            "wire": wire,
            "timeout_s": timeout_s,
            "recorder": observer and observer.settings,  # it may communicate: every worker needs it
            "model parameters": numels,
        }
        require_agreement(self.config, model.process_group)
        self._journey = Journey(
            numels,
            schedule=schedule,
            compressor=compressor,
            per_layer=scope == "layer",
            momentum=momentum,
            raise_nonfinite=on_nonfinite == "raise",
            collective=collective,
            wire=wire,
            timeout_s=timeout_s,
            group=model.process_group,
            observer=observer,
        )
        if observer:
            observer.attach(self.config, numels, self._journey.feedback, model.process_group)
        self._whole_model = scope == "model"
        self._scaler = scaler
        self._unused_possible = bool(model.find_unused_parameters or model.static_graph)
        self._names = {id(parameter): name for name, parameter in model.module.named_parameters()}
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._waiting: list[tuple[GradBucket, Promise]] = []

    @property
    def metrics(self) -> Metrics:
        """Measurements of the last step; complete once its backward has returned."""
        return self._journey.measured

    @property
    def step(self) -> int:
        """Optimizer steps taken through the hook."""
        return self._journey.step

    @property
    def density(self) -> float:
        """Density of the next step."""
        return self._journey.density

    @property
    def collective(self) -> Collective:
        """How workers agree; an ``Auto`` tells the ``link`` that it knows, and the ``way`` that proved faster."""
        return self._journey.collective

    @property
    def feedback(self) -> ErrorFeedback:
        """The residuals, with those of the last step committed."""
        self._journey.feedback.settle()
        return self._journey.feedback

    def state_dict(self) -> dict[str, Any]:
        """Return this worker's residuals, velocities, hints and step. Each worker must save its own.

        Tensors are copies; ``torch.load(..., weights_only=True)`` reads what ``torch.save`` makes of it.
        """
        return self._journey.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; nothing changes when it does not fit.

        Raises:
            ValueError: another format, another rank or number of workers, or another model.
        """
        self._journey.load_state_dict(state)

    # ------------------------------------------------------------------ the buckets of one backward

    def reduce(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Start the exchange of one bucket; the future holds its buffer with the mean."""
        if bucket.index() == 0:  # DDP starts buckets in order
            self._waiting = []
            self._journey.begin(scale=self._scaler.get_scale() if self._scaler else 1.0)
        future = self._start(bucket)
        if bucket.is_last():
            if self._waiting:
                self._reduce_waiting()
            self._journey.seal()
        return future

    def _start(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        grad = bucket.buffer()
        if grad.is_sparse:
            return self._journey.pass_through(grad)
        if self._whole_model and not self._journey.dense:
            self._waiting.append((bucket, Promise(grad.device)))
            return self._waiting[-1][1].future
        if (done := self._journey.repeat(lambda: self._layout([bucket]), grad)) is not None:
            return done
        if self._journey.dense:
            held = self._without_gradient([bucket], [grad])
            return self._journey.reduce_dense(lambda: self._layout([bucket]), grad, held)
        return self._journey.reduce_sparse(self._layout([bucket]), [grad], self._without_gradient([bucket], [grad]))

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

        self._journey.reduce_sparse(self._layout(buckets), grads, held).then(hand_out)

    def _layout(self, buckets: list[GradBucket]) -> Layout:
        # by parameter: after DDP rebuilds its buckets, one can have the same size and its parameters reversed
        parameters = [parameter for bucket in buckets for parameter in bucket.parameters()]
        key = tuple(map(id, parameters))
        layout = self._layouts.get(key)
        if layout is None:
            names, numels = [self._names[one] for one in key], [parameter.numel() for parameter in parameters]
            layout = self._layouts[key] = Layout(tuple(names), tuple(numels))
        return layout

    def _without_gradient(self, buckets: list[GradBucket], grads: list[Tensor]) -> list[slice]:
        """Find the parameters without gradient: DDP drops what comes back for one that no worker used."""
        if not self._unused_possible:
            return []
        grad = grads[0] if len(grads) == 1 else torch.cat(grads)
        return [place for _, place in self._layout(buckets).slices() if not bool(grad[place].any())]


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
