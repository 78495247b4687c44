"""The journey of a flat gradient: take, one message, mean, keep; it knows collectives, not DDP."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank.codec import Wire
from gaussiank.collectives import (
    EXACT,
    AllGather,
    Collective,
    Done,
    Exchange,
    engine_of,
    fitting_wire,
    require_feedback,
    ring_bytes,
    then,
)
from gaussiank.compressors import Compressor
from gaussiank.course import Course
from gaussiank.feedback import ErrorFeedback, OptimizerUse, require_same_worker
from gaussiank.layout import Layout
from gaussiank.mean import require_finite, write_back
from gaussiank.metrics import Metrics
from gaussiank.momentum import MomentumCorrection
from gaussiank.observer import Observer, Unobserved
from gaussiank.ops import RESIDUAL_DTYPES
from gaussiank.schedule import Schedule, require_density
from gaussiank.selector import Selector
from gaussiank.sparse import SparseGradient
from gaussiank.whole import Whole

FORMAT = 1
_DENSE_STEPS = 200  # in a row, by the choice of ``auto``, until the user is told


class Journey:
    """Carry the gradients of one model from local to mean, step after step, on this worker.

    Args:
        parameters: name -> shape of every parameter, or its numel.
        schedule: density over steps.
        compressor: which entries to send.
        per_layer: count k for each parameter by itself.
        momentum: momentum correction, or None.
        raise_nonfinite: raise when a mean is not finite, instead of passing it on.
        collective: how the sparse gradients become a mean.
        wire: how their entries travel; None loses nothing. Indices that all workers draw alike are not sent.
        timeout_s: seconds after which a message fails that a worker did not answer.
        group: process group, or None for the default one; messages go over groups of their own with its workers.
        observer: told of every vector on its way, or None.
        use: tells whether optimizers have used the means; without it every mean counts as used.

    Attributes:
        step: steps begun and sealed so far; the last one counts until it is found that no optimizer has used it.
        exchanges: backwards begun and sealed so far, used or not: what random draws and turns go by.
        measured: measurements of the step under way or, after it, of the last one.
        feedback: the residuals.
    """

    def __init__(
        self,
        parameters: Mapping[str, int | Sequence[int]],
        *,
        schedule: Schedule,
        compressor: Compressor,
        per_layer: bool = False,
        momentum: MomentumCorrection | None = None,
        raise_nonfinite: bool = False,
        collective: Collective | None = None,
        wire: Wire | None = None,
        timeout_s: float = 300.0,
        group: dist.ProcessGroup | None = None,
        observer: Observer | None = None,
        use: OptimizerUse | None = None,
    ) -> None:
        if momentum is not None and not compressor.keeps_rest:
            raise ValueError(f"momentum must be None for a compressor without feedback, got {momentum}. Leave it out.")
        collective = collective or AllGather()
        require_feedback(collective, compressor)
        self._wire = fitting_wire(wire or EXACT, compressor, collective)
        self._engine = engine_of(group, timeout_s)
        self._rank, self._world_size = dist.get_rank(group), dist.get_world_size(group)
        self._schedule, self._compressor = schedule, compressor
        self._raise_nonfinite = raise_nonfinite
        self._observer = observer or Unobserved()
        self._selector = Selector(compressor, per_layer=per_layer, rank=self._rank)
        joined = collective.join(group, timeout_s)
        self._course = Course(joined, self._engine, self._selector, wire=self._wire, world_size=self._world_size)
        self._routes: dict[str, Tensor] = {}  # what the collective wants to know at the next step, by layout
        self._parts = 0  # exchanges begun in this step
        self._use = use
        self.feedback = ErrorFeedback(parameters, momentum=momentum, world_size=self._world_size, use=use)
        self._whole = Whole(
            self._engine,
            self.feedback,
            self._observer,
            dtype=compressor.dense_dtype,
            raise_nonfinite=raise_nonfinite,
            world_size=self._world_size,
        )
        self.step = self.exchanges = 0
        self._used_before: int | None = (
            None  # steps of optimizers when the last backward began; None: nothing to take back
        )
        self._scale = 1.0
        self._dense_steps, self._told_of_dense = 0, False
        self.measured = Metrics(density=self.density)

    @property
    def density(self) -> float:
        """Density of the step that ``begin`` starts next."""
        return require_density(self._schedule(self.step))

    @property
    def collective(self) -> Collective:
        """How workers agree in the step under way; ``auto`` changes its mind."""
        return self._course.collective

    @property
    def dense(self) -> bool:
        """Whether the step under way sends everything."""
        return self._compressor.sends_all or (self.measured.density == 1 and not self._compressor.cuts)

    # ------------------------------------------------------------------ one step: begin, reduce, seal

    def begin(self, scale: float = 1.0) -> None:
        """Begin a step: commit the last one's residuals, or forget them when it was not whole, finite and used.

        Args:
            scale: what a ``GradScaler`` multiplies this step's loss by; residuals follow when it changes.
        """
        self._count_back()
        density = self.density
        same = self._whole.repeatable and scale == self._scale and density == self.measured.density
        if not same or not self.collective.rests():
            same = self._prepare(scale) and same
        self._parts = 0
        self._course.begin()
        self.measured = Metrics(step=self.step, density=density)
        self._whole.begin(self.measured, same=same)
        self._observer.begin(self.step, density)

    def _count_back(self) -> None:
        """Take back the number of the last step if no optimizer has used it: this one is that step."""
        if self._use is not None:
            self.step -= self._unused
            self._used_before = self._use.steps if self._use.begin() else None

    @property
    def _unused(self) -> bool:
        """Whether no optimizer has stepped since the last backward, though torch shows such steps."""
        use = self._use
        return use is not None and self._used_before == use.steps and not use.unknown

    def discard(self) -> None:
        """Forget the last backward: residuals and step are as before it.

        Raises:
            RuntimeError: an optimizer has used its mean.
        """
        if self._use is not None:
            if self._used_before is not None and self._use.steps > self._used_before:
                raise RuntimeError(
                    "discard must come before the optimizer's step, got a backward whose mean was used. "
                    "Call it in place of the step."
                )
            if self._used_before is None:
                return
            self._used_before = None
        self.feedback.discard()
        self._whole.stop()
        self.step -= 1

    def _prepare(self, scale: float) -> bool:
        """Settle the last step and ask the collective; tells whether that stays as it was."""
        self.feedback.settle()
        if scale != self._scale:
            self.feedback.rescale(scale / self._scale)
            self._scale = scale
        self._engine.flush()  # what a backward that raised may have left
        return not self._course.revise(self.step)

    def seal(self) -> None:
        """Say that every gradient of the step is under way."""
        if not self._whole.repeatable:
            self._engine.flush()
            self.feedback.seal()
            self._course.seal()
            self._whole.seal(self._parts)
        self.step += 1
        self.exchanges += 1
        if self._use is not None:
            self._use.seal()
        self.measured.launched_at = time.perf_counter()
        self._tell_of_dense()

    def _tell_of_dense(self) -> None:
        """Warn, once, that ``auto`` has long sent everything: then the hook costs and brings nothing."""
        measured = self.measured
        chosen = not self.dense and measured.numel > 0 and measured.kept == measured.numel
        self._dense_steps = self._dense_steps + 1 if chosen else 0
        if self._dense_steps == _DENSE_STEPS and not self._told_of_dense and self._rank == 0:
            self._told_of_dense = True
            warnings.warn(
                f"collective {self.collective} has sent whole gradients for {_DENSE_STEPS} steps: dense all-reduce is "
                "faster on this link. Leave out gaussiank.compress to save the time of its hook.",
                stacklevel=2,
            )

    def repeat(self, layout_of: Callable[[], Layout], grad: Tensor) -> Done | None:
        """Start the mean of a whole gradient as in the last step; None where that does not say how it goes."""
        if not self._whole.repeats(self._parts, grad):
            return None
        return self._whole.repeat(self._label(layout_of), grad)

    def reduce_dense(self, layout_of: Callable[[], Layout], grad: Tensor, held: Sequence[slice] = ()) -> Done:
        """Start the mean of the whole gradient and its residual; it comes back in ``grad``.

        Args:
            layout_of: returns the parameters in ``grad``; only asked where something depends on it, because a step
                that neither compresses nor keeps anything should cost what DDP's own does.
            grad: ``[numel]`` local gradient; becomes the mean in place.
            held: places of parameters without gradient, whose residual stays.
        """
        return self._whole.reduce(self._label(layout_of), layout_of, grad, held)

    def reduce_sparse(self, layout: Layout, grads: Sequence[Tensor], held: Sequence[slice] = ()) -> Done:
        """Start the mean of one selection over all the given gradients; it comes back in them.

        Args:
            layout: parameters in ``grads``, end to end.
            grads: flat local gradients; become the mean in place.
            held: places of parameters without gradient, whose residual stays.

        Returns:
            A future of the first gradient.
        """
        measured, density = self.measured, self.measured.density
        started = time.perf_counter()
        grad = grads[0] if len(grads) == 1 else torch.cat(list(grads))
        k, collective = self._course.choose(layout, density)
        if collective is None:  # to send all of it costs less
            return self._whole.reduce_parts(self._label(lambda: layout), layout, grad, grads, held)
        self._whole.stop()
        self._observer.taking(layout, grads)
        sparse = self._take(layout, grad, held)
        sent_at = time.perf_counter()
        dense_bytes = sum(ring_bytes(grad, self._world_size) for grad in grads)
        measured.note_taken(sent_at - started, numel=layout.numel, k=k, kept=sparse.kept, dense_bytes=dense_bytes)
        self._observer.taken(layout, k, sparse)
        capacity = self._selector.capacity(layout, density)
        route, part = f"{layout.names[0]}..{layout.names[-1]}/{layout.numel}", self._parts
        turn = self.exchanges
        drawn = self._selector.shared(layout, density, turn, part, grad.device)

        def start(group: dist.ProcessGroup) -> Exchange:
            return collective.start(
                sparse,
                wire=self._wire,
                capacity=capacity,
                group=group,
                step=turn,
                part=part,
                hint=self._routes.get(route),
                draw=(lambda indices: self.feedback.draw(layout, indices)) if self._compressor.keeps_rest else None,
                shared=drawn if self._wire.index == "seed" else None,
            )

        @torch.no_grad()  # callbacks run in threads of the backend
        def finish(exchange: Exchange) -> Tensor:
            arrived = measured.note_arrived(sent_at, exchange.sent_bytes)
            mean = grad if grad.dtype == sparse.values.dtype else grad.to(sparse.values.dtype)
            outcome = exchange.finish(mean)
            finite = write_back(mean, grads, outcome.finite)
            if outcome.hint is not None:
                self._routes[route] = outcome.hint
            if self._compressor.keeps_rest and measured is self.measured:  # else it is late, after an error
                for rest in outcome.returned:
                    self.feedback.keep(layout, rest)
                if any(part.dtype != mean.dtype for part in grads):
                    self.feedback.keep(layout, mean)
                self.feedback.judge(finite)
            if self._raise_nonfinite:
                require_finite(finite, layout, grads, measured.step)
            measured.note_finished(arrived)
            self._observer.arrived(layout, grads)
            return grads[0]

        return self._engine.carry(
            self._label(lambda: layout), start, finish, phased=collective.phased, device=grad.device
        )

    def pass_through(self, grad: Tensor) -> torch.futures.Future[Any]:
        """Start the mean of a ``torch.sparse`` gradient, an embedding's, as DDP itself would."""
        work = dist.all_reduce(grad.div_(self._world_size), group=self._engine.group, async_op=True)
        assert work is not None  # async_op
        return then(work.get_future(), lambda done: done.value()[0])

    def _take(self, layout: Layout, grad: Tensor, held: Sequence[slice]) -> SparseGradient:
        def select(accumulated: Tensor) -> SparseGradient:
            return self._selector.select(layout, accumulated, self.measured.density, self.exchanges)

        def fused(addend: Tensor, residual: Tensor, out: Tensor) -> SparseGradient:
            return self._selector.take(layout, addend, residual, out, self.measured.density, self.exchanges)

        if self._compressor.keeps_rest:
            return self.feedback.take(layout, grad, select, held=held, fused=fused)
        return select(grad.to(RESIDUAL_DTYPES[grad.dtype]))

    def _label(self, layout_of: Callable[[], Layout]) -> Callable[[], str]:
        part, step = self._parts, self.measured.step
        self._parts += 1
        return lambda: f"bucket {part} of step {step} ({layout_of().names[0]} to {layout_of().names[-1]})"

    def state_dict(self) -> dict[str, Any]:
        """Return copies of this worker's residuals, velocities, hints and step."""
        self.feedback.settle()
        return {
            "format": FORMAT,
            "rank": self._rank,
            "world_size": self._world_size,
            "step": self.step - self._unused,
            "exchanges": self.exchanges - self._unused,
            "scale": self._scale,
            "feedback": self.feedback.state_dict(),
            "hints": {key: hint.clone() for key, hint in self._selector.hints.items()},
            "routes": {key: hint.clone() for key, hint in self._routes.items()},
        }

    def require_fitting(self, state: Mapping[str, Any]) -> None:
        """Raise what ``load_state_dict`` would, and change nothing.

        Raises:
            ValueError: another format, another rank or number of workers, or another model.
        """
        try:
            require_same_worker(state, number=FORMAT, world_size=self._world_size, rank=self._rank)
            self.feedback.require_fitting(state["feedback"])
            learnt = [*state["hints"].values(), *state.get("routes", {}).values()]
            whole = all(isinstance(one, Tensor) for one in learnt) and isinstance(state["step"], int)
        except (AttributeError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ValueError(
                "state must be what state_dict returned, got one that lacks something. Load the state as it was saved."
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; nothing changes when it does not fit.

        Raises:
            ValueError: another format, another rank or number of workers, or another model.
        """
        self.require_fitting(state)
        self.feedback.load_state_dict(state["feedback"])
        self._selector.load_hints(state["hints"])
        self._routes = {key: hint.clone() for key, hint in state.get("routes", {}).items()}
        self.step, self._used_before = state["step"], None
        self.exchanges = state.get("exchanges", self.step)
        self._whole.stop()
        self._scale = state.get("scale", 1.0)
