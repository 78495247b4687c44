"""The journey of a flat gradient: take, one message, mean, keep; it knows collectives, not DDP."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank.collectives import AllGather, DenseAllReduce, ring_bytes
from gaussiank.compressors import Compressor
from gaussiank.feedback import ErrorFeedback
from gaussiank.layout import Layout
from gaussiank.metrics import Metrics
from gaussiank.momentum import MomentumCorrection
from gaussiank.observer import Observer
from gaussiank.ops import RESIDUAL_DTYPES
from gaussiank.schedule import Schedule, require_density
from gaussiank.selector import Selector
from gaussiank.sparse import SparseGradient

FORMAT = 1
Done = torch.futures.Future[Tensor]


class Journey:
    """Carry the gradients of one model from local to mean, step after step, on this worker.

    Args:
        numels: name -> numel of every parameter.
        schedule: density over steps.
        compressor: which entries to send.
        per_layer: count k for each parameter by itself.
        momentum: momentum correction, or None.
        raise_nonfinite: raise when a mean is not finite, instead of passing it on.
        group: process group, or None for the default one.
        observer: told of every vector on its way, or None.

    Attributes:
        step: steps begun and sealed so far.
        measured: measurements of the step under way or, after it, of the last one.
        feedback: the residuals.
    """

    def __init__(
        self,
        numels: Mapping[str, int],
        *,
        schedule: Schedule,
        compressor: Compressor,
        per_layer: bool = False,
        momentum: MomentumCorrection | None = None,
        raise_nonfinite: bool = False,
        group: dist.ProcessGroup | None = None,
        observer: Observer | None = None,
    ) -> None:
        if momentum is not None and not compressor.keeps_rest:
            raise ValueError(f"momentum must be None for a compressor without feedback, got {momentum}. Leave it out.")
        self._group = group
        self._world_size = dist.get_world_size(group)
        self._rank = dist.get_rank(group)
        self._schedule = schedule
        self._compressor = compressor
        self._raise_nonfinite = raise_nonfinite
        self._observer = observer
        self._selector = Selector(compressor, per_layer=per_layer, rank=self._rank)
        self._gather = AllGather()
        self._all_reduce = DenseAllReduce()
        self.feedback = ErrorFeedback(numels, momentum=momentum, world_size=self._world_size)
        self.step = 0
        self.measured = Metrics()

    @property
    def density(self) -> float:
        """Density of the step that ``begin`` starts next."""
        return require_density(self._schedule(self.step))

    @property
    def dense(self) -> bool:
        """Whether the step under way sends everything."""
        return self._compressor.sends_all or self.measured.density == 1

    # ------------------------------------------------------------------ one step: begin, reduce, seal

    def begin(self) -> None:
        """Begin a step: commit the last one's residuals, or forget them when it was not whole and finite."""
        self.feedback.settle()
        self.measured = Metrics(step=self.step, density=self.density)
        if self._observer:
            self._observer.begin(self.step, self.measured.density)

    def seal(self) -> None:
        """Say that every gradient of the step is under way."""
        self.feedback.seal()
        self.step += 1
        self.measured.launched_at = time.perf_counter()

    def reduce_dense(self, layout: Layout, grad: Tensor, held: Sequence[slice] = ()) -> Done:
        """Start the mean of the whole gradient and its residual; it comes back in ``grad``.

        Args:
            layout: parameters in ``grad``.
            grad: ``[numel]`` local gradient; becomes the mean in place.
            held: places of parameters without gradient, whose residual stays.
        """
        measured = self.measured
        if self._observer:
            self._observer.taking(layout, [grad])
        started = time.perf_counter()
        judged = self.feedback.take_all(layout, grad, held=held)
        exchange = self._all_reduce.start_dense(grad, group=self._group)
        sent_at = self._note_sent(started, grad.numel(), grad.numel(), exchange.sent_bytes, [grad])
        if self._observer:
            self._observer.taken(layout, layout.numel, None)

        def finish(done: torch.futures.Future[Any]) -> Tensor:
            done.value()  # raises when a worker is gone
            measured.exchange_s += time.perf_counter() - sent_at
            if judged or self._raise_nonfinite:
                finite = exchange.finish(grad).finite
                if judged:
                    self.feedback.judge(finite)
                self._refuse_nonfinite(finite, layout, grad)
            if self._observer:
                self._observer.arrived(layout, [grad])
            return grad

        return cast(Done, exchange.future.then(finish))

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
        if self._observer:
            self._observer.taking(layout, grads)
        started = time.perf_counter()
        grad = grads[0] if len(grads) == 1 else torch.cat(list(grads))
        sparse = self._take(layout, grad, held)
        exchange = self._gather.start(sparse, capacity=self._selector.capacity(layout, density), group=self._group)
        sent_at = self._note_sent(started, self._selector.k(layout, density), sparse.kept, exchange.sent_bytes, grads)
        if self._observer:
            self._observer.taken(layout, self._selector.k(layout, density), sparse)

        def finish(done: torch.futures.Future[Any]) -> Tensor:
            done.value()  # raises when a worker is gone
            arrived = time.perf_counter()
            measured.exchange_s += arrived - sent_at
            with torch.no_grad():
                mean = grad if grad.dtype == sparse.values.dtype else grad.to(sparse.values.dtype)
                outcome = exchange.finish(mean)
                finite = _write_back(mean, grads, outcome.finite)
                if self._compressor.keeps_rest:
                    if outcome.rejected is not None:
                        self.feedback.keep(layout, outcome.rejected)
                    if any(part.dtype != mean.dtype for part in grads):
                        self.feedback.keep(layout, mean)
                    self.feedback.judge(finite)
                self._refuse_nonfinite(finite, layout, torch.cat(list(grads)) if self._raise_nonfinite else mean)
            measured.finish_s += time.perf_counter() - arrived
            if self._observer:
                self._observer.arrived(layout, grads)
            return grads[0]

        return cast(Done, exchange.future.then(finish))

    def pass_through(self, grad: Tensor) -> torch.futures.Future[Any]:
        """Start the mean of a ``torch.sparse`` gradient, an embedding's, as DDP itself would."""
        work = dist.all_reduce(grad.div_(self._world_size), group=self._group, async_op=True)
        assert work is not None  # async_op
        return cast(torch.futures.Future[Any], work.get_future().then(lambda done: done.value()[0]))

    def _take(self, layout: Layout, grad: Tensor, held: Sequence[slice]) -> SparseGradient:
        def select(accumulated: Tensor) -> SparseGradient:
            return self._selector.select(layout, accumulated, self.measured.density, self.measured.step)

        if self._compressor.keeps_rest:
            return self.feedback.take(layout, grad, select, held=held)
        return select(grad.to(RESIDUAL_DTYPES[grad.dtype]))

    def _note_sent(self, started: float, k: int, kept: int, sent_bytes: int, grads: Sequence[Tensor]) -> float:
        now = time.perf_counter()
        measured = self.measured
        measured.select_s += now - started
        measured.numel += sum(grad.numel() for grad in grads)
        measured.k += k
        measured.kept += kept
        measured.sent_bytes += sent_bytes
        measured.dense_bytes += sum(ring_bytes(grad, self._world_size) for grad in grads)
        return now

    def _refuse_nonfinite(self, finite: Tensor, layout: Layout, mean: Tensor) -> None:
        if not self._raise_nonfinite or bool(finite):
            return
        for name, place in layout.slices():
            if not bool(torch.isfinite(mean[place]).all()):
                raise RuntimeError(
                    f"gradient of {name} must be finite, got infinity or NaN on some worker in step "
                    f"{self.measured.step}. No residual was changed; lower the learning rate, or let a GradScaler "
                    "skip such steps with on_nonfinite='propagate'."
                )

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """Return copies of this worker's residuals, velocities, hints and step."""
        self.feedback.settle()
        return {
            "format": FORMAT,
            "rank": self._rank,
            "world_size": self._world_size,
            "step": self.step,
            "feedback": self.feedback.state_dict(),
            "hints": {key: hint.clone() for key, hint in self._selector.hints.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; nothing changes when it does not fit.

        Raises:
            ValueError: another format, another rank or number of workers, or another model.
        """
        if state.get("format") != FORMAT:
            raise ValueError(
                f"state must have format {FORMAT}, got {state.get('format')!r}. "
                "Load it with the gaussiank that saved it."
            )
        for field, own in (("world_size", self._world_size), ("rank", self._rank)):
            if state[field] != own:
                raise ValueError(
                    f"{field} of the state must be {own}, got {state[field]}. "
                    "Load on each worker what that worker saved, on as many workers."
                )
        self.feedback.load_state_dict(state["feedback"])
        self._selector.load_hints(state["hints"])
        self.step = state["step"]


def _write_back(mean: Tensor, grads: Sequence[Tensor], finite: Tensor) -> Tensor:
    """Copy the mean into the gradients, unless it is the one gradient itself; leave in ``mean`` what was rounded off.

    Returns:
        ``finite``, and whether no narrower dtype overflowed.
    """
    if len(grads) == 1 and grads[0].data_ptr() == mean.data_ptr():
        return finite
    start = 0
    for grad in grads:
        part = mean[start : start + grad.numel()]
        grad.copy_(part)
        part.sub_(grad)
        start += grad.numel()
    return finite & torch.isfinite(mean).all()
