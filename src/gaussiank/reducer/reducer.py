"""From a flat gradient to the mean over workers: take, send, receive; it knows collectives, not DDP."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank.autotune import CollectivePlan, Policy
from gaussiank.collectives import Collective, Exchange
from gaussiank.comm import Done, all_reduce_bytes, executor_of, group_timeout_s, then
from gaussiank.feedback import ErrorFeedback, OptimizerUse, require_same_worker
from gaussiank.layout import Layout
from gaussiank.metrics import Metrics, Observer, Totals
from gaussiank.ops import RESIDUAL_DTYPES, NarrowMean
from gaussiank.schedule import require_density

from .dense import DensePath, require_finite
from .precondition import Preconditioner
from .selection import Asked, Selector
from .settings import Settings

FORMAT = 1
_DENSE_STEPS = 200  # in a row, by the choice of ``auto``, until the user is told
_DENSE_REMEDIES = {
    "compress": ("gradients", "Leave out gaussiank.compress to save the time of its hook."),
    "LocalSteps": ("differences", "Give gaussiank.LocalSteps density=1, which keeps no residual."),
}  # caller -> what it sends, and what to do


@dataclass(eq=False)
class BucketStep:
    """One vector on its way through one step: ``take`` selects, ``send`` starts its exchange, ``receive`` ends it.

    Args:
        reducer: whose settings, residuals and hints it goes by.
        measured: measurements of its step.
        collective: how workers agree on its mean.
        layout: parameters in it.
        grads: the flat gradients that it is made of, end to end; become the mean.
        grad: ``[numel]``, the one gradient itself, or a copy of several.
        part: number of this exchange in its step, the same on every worker.
        exchanges: backwards that exchanged before this one, used or not: what random draws go by.
    """

    reducer: GradientReducer
    measured: Metrics
    collective: Collective
    layout: Layout
    grads: Sequence[Tensor]
    grad: Tensor
    part: int
    exchanges: int

    def label(self) -> str:
        """Name the vector in errors."""
        names = self.layout.names
        return f"bucket {self.part} of step {self.measured.step} ({names[0]} to {names[-1]})"

    def take(self, asked: Asked, held: Sequence[slice], started: float) -> None:
        """Add the residual and select what to send, which leaves the residual; the rest stays there.

        Args:
            asked: of this vector, at the density of the step.
            held: places of parameters without gradient, whose residual stays.
            started: ``time.perf_counter()`` of when the work on this vector began.
        """
        reducer, layout, grad, density = self.reducer, self.layout, self.grad, self.measured.density
        select = partial(reducer.selector.select, layout, density=density, step=self.exchanges)
        if reducer.observer:
            reducer.observer.taking(layout, self.grads)
        if reducer.keeps_rest:
            row = self.collective.row_format(reducer.wire, asked.capacity, layout.numel)
            fused = partial(reducer.selector.take, layout, density=density, step=self.exchanges, row=row)
            self._sparse = reducer.feedback.take(layout, grad, select, held=held, fused=fused)
        else:
            self._sparse = select(grad.to(RESIDUAL_DTYPES[grad.dtype]))
        self._left_at = time.perf_counter()
        dense_bytes = sum(all_reduce_bytes(one, reducer.world_size) for one in self.grads)
        self.measured.note_taken(
            self._left_at - started, numel=layout.numel, k=asked.k, kept=self._sparse.kept, dense_bytes=dense_bytes
        )
        if reducer.observer:
            reducer.observer.taken(layout, asked.k, self._sparse)
        self._capacity, self._drawn = asked.capacity, None
        if reducer.wire.index == "seed":
            self._drawn = reducer.selector.shared(layout, density, self.exchanges, self.part, grad.device)
        # whose hint it is: of this collective among as many workers, for these parameters
        kind, names = type(self.collective).__name__, layout.names
        self._hint_key = f"{kind}@{reducer.world_size} {names[0]}..{names[-1]}/{layout.numel}"

    def send(self, group: dist.ProcessGroup) -> Exchange:
        """Start the exchange: round and encode the entries, and send the first message over a group."""
        reducer, layout, started = self.reducer, self.layout, time.perf_counter()
        self._exchange = self.collective.start(
            self._sparse,
            wire=reducer.wire,
            capacity=self._capacity,
            group=group,
            step=self.exchanges,
            part=self.part,
            hint=reducer.exchange_hints.get(self._hint_key),
            take_more=partial(reducer.feedback.take_more, layout) if reducer.keeps_rest else None,
            shared=self._drawn,
            narrow=self._narrow,
        )
        if not self.collective.multi_phase:  # else a thread has encoded, and backward went on
            self._left_at = time.perf_counter()
            self.measured.select_s += self._left_at - started
        return self._exchange

    def _narrow(self) -> NarrowMean | None:
        """Return the one gradient of 16 bits and its residual of 32, if a kernel may write both."""
        reducer, dtype = self.reducer, self._sparse.values.dtype
        late = self.measured is not reducer.measured
        if len(self.grads) > 1 or self.grad.dtype == dtype or not reducer.keeps_rest or late:
            return None
        residual = reducer.feedback.written(self.layout)
        return NarrowMean(self.grad, residual) if residual.dtype == torch.float32 else None

    @torch.no_grad()  # it runs in threads of the backend
    def receive(self, exchange: Exchange) -> Tensor:
        """End the exchange: write the mean to the gradients, and put back into the residual what did not enter it."""
        reducer, layout, measured = self.reducer, self.layout, self.measured
        arrived = time.perf_counter()
        dtype = self._sparse.values.dtype
        mean = self.grad if self.grad.dtype == dtype else torch.empty_like(self.grad, dtype=dtype)
        outcome = exchange.finish(mean)
        copied = self.grads[0] is not mean and not outcome.narrowed
        finite = write_back(mean, self.grads, outcome.finite) if copied else outcome.finite
        if outcome.hint is not None:
            reducer.exchange_hints[self._hint_key] = outcome.hint
        if reducer.keeps_rest and measured is reducer.measured:  # else it is late, after an error
            for rest in (outcome.rejected, *outcome.rounded_off):
                if rest is not None:
                    reducer.feedback.put_back(layout, rest)
            if copied and any(one.dtype != dtype for one in self.grads):
                reducer.feedback.put_back(layout, mean)
            reducer.feedback.record_finite(finite)
        measured.note_received(self._left_at, exchange.sent_bytes, arrived)
        if reducer.raise_nonfinite:
            require_finite(finite, layout, self.grads, measured.step)
        if reducer.observer:
            reducer.observer.arrived(layout, self.grads)
        return self.grads[0]


def write_back(mean: Tensor, grads: Sequence[Tensor], finite: Tensor) -> Tensor:
    """Copy the mean into the gradients, and leave in ``mean`` what was rounded off.

    Args:
        mean: float ``[numel]``; becomes the rounding error.
        grads: flat gradients, end to end as long as ``mean``; overwritten.
        finite: 0-d bool tensor, whether the mean is.

    Returns:
        ``finite``, and whether no narrower dtype overflowed.

    Example:
        >>> mean, grad = torch.tensor([1.0, 1.001]), torch.zeros(2, dtype=torch.bfloat16)
        >>> write_back(mean, [grad], torch.tensor(True)), grad.tolist(), mean.tolist()[0]
        (tensor(True), [1.0, 1.0], 0.0)
    """
    start = 0
    for grad in grads:
        part = mean[start : start + grad.numel()]
        grad.copy_(part)
        part.sub_(grad)
        start += grad.numel()
    return finite & torch.isfinite(mean).all()


class GradientReducer:
    """Carry the gradients of one model from local to mean, step after step, on this worker.

    Args:
        parameters: name -> shape or numel of every parameter.
        settings: how, the same on every worker.
        group: process group, or None for the default one; messages go over groups of their own with its workers.
        observer: told of every vector on its way, or None.
        use: tells whether optimizers have used the means; without it every mean counts as used.
        device: of the gradients, None for the CPU.

    Attributes:
        step: steps begun and sealed so far; the last one counts until it is found that no optimizer has used it.
        exchanges: backwards begun and sealed so far, used or not: what random draws and turns go by.
        measured: measurements of the step under way or, after it, of the last one.
        totals: of all steps before that.
        dense: whether that step sends everything.
        feedback: the residuals.
        whole: whether steps that begin from now on send everything, whatever the schedule says.
    """

    def __init__(
        self,
        parameters: Mapping[str, int | Sequence[int]],
        settings: Settings,
        *,
        group: dist.ProcessGroup | None = None,
        observer: Observer | None = None,
        use: OptimizerUse | None = None,
        device: torch.device | None = None,
    ) -> None:
        timeout_s = group_timeout_s(group) if settings.timeout_s is None else settings.timeout_s
        self.wire, self.compressor = settings.fitting_wire, settings.compressor
        self.keeps_rest = self.compressor.keeps_rest
        self._schedule, self._clip = settings.schedule, settings.clip
        self.whole, self._caller = False, settings.caller
        self.raise_nonfinite = settings.on_nonfinite == "raise"
        self._cuda = device is not None and device.type == "cuda"
        self.executor = executor_of(group, timeout_s, device)
        self._rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        self.observer = observer
        self.selector = Selector(self.compressor, per_layer=settings.scope == "layer", rank=self._rank)
        self._plan = CollectivePlan(settings.collective, self.executor, group, timeout_s, self.wire)
        self.exchange_hints: dict[str, Tensor] = {}  # what the collective wants to know at the next step, by layout
        self._parts = 0  # exchanges begun in this step
        self._phased = False  # whether a message of this step depends on another
        self._in_flight: list[tuple[Done, object]] = []  # on accelerators, until the next step begins
        self._use = use
        self._rows = (
            None
            if settings.precondition is None
            else Preconditioner(settings.precondition, parameters, self.world_size)
        )
        self._moments: Done | None = None  # of the last step, on their way
        self.feedback = ErrorFeedback(
            parameters,
            momentum=settings.momentum,
            world_size=self.world_size,
            use=use,
            dtype=torch.bfloat16 if settings.narrow else None,
            decay=settings.decay,
            follower=self._rows,
        )
        self._dense = DensePath(self)
        self.step = self.exchanges = 0
        self._joined = False  # whether the exchanges under way belong to no backward of this worker
        self._counted = False  # whether step counts a last backward that can be taken back
        self._scale = 1.0
        self._dense_steps, self._told_of_dense = 0, False
        self.totals = Totals()
        self._measure()

    @property
    def density(self) -> float:
        """Density of the step that ``begin`` starts next."""
        density = 1.0 if self.whole else self._schedule(self.step)
        return density if type(density) is float and 0 < density <= 1 else require_density(density)

    @property
    def collective(self) -> Policy:
        """How workers agree in the step under way; ``auto`` changes its mind."""
        return self._plan.policy

    # ------------------------------------------------------------------ one step: begin, reduce, seal

    def begin(self, scale: float = 1.0) -> None:
        """Begin a step: commit the last one's residuals, or forget them when it was not whole, finite and used.

        Args:
            scale: what a ``GradScaler`` multiplies this step's loss by; residuals follow when it changes.
        """
        if self._cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "backward must not be captured in a CUDA graph with a compression: what it decides at each step would "
                "be replayed. Capture the forward alone, or leave gaussiank.compress out."
            )
        self.step -= self._unused  # if no optimizer has used the last one, this one takes its number
        self._counted = False
        if self._use is not None:
            self._joined = torch._C._current_graph_task_id() < 0  # in no backward
            self._use.begin(joined=self._joined)
        before, self._parts = self.measured.density, 0
        self.totals.add(self.measured, time.perf_counter())
        self._measure()
        same = bool(self._dense.expected) and scale == self._scale and self.measured.density == before
        if not (same and self._plan.begin_repeated()):
            self.settle()
            if scale != self._scale:
                self.feedback.rescale(scale / self._scale)
                self._scale = scale
            self.executor.flush()  # what a backward that raised may have left
            same = not self._plan.revise(self.step) and same
        if self._in_flight:
            self._let_go()
        self._phased = False
        self.feedback.turn = self.exchanges * self.world_size + self._rank
        if self._rows is not None:
            self._rows.begin()
        self._dense.expected, self._dense.sent = (self._dense.expected if same else []), []
        if self.observer:
            self.observer.begin(self.step, self.measured.density)

    def _hold(self, done: Done, used: object) -> None:
        """Hold what an exchange on an accelerator still uses, until the next step begins.

        Its callbacks compute on streams of their own, after messages that are merely enqueued when the hook returns.
        What the hook's stream has allocated goes back to that stream when Python drops it, and the rest of backward
        would overwrite it. On a CPU an exchange has ended when its callback has.
        """
        self._in_flight.append((done, used))

    def _let_go(self) -> None:
        """Let the current stream wait for what exchanges of the last step still use, and drop it."""
        held, self._in_flight = self._in_flight, []
        for done, _ in held:
            with contextlib.suppress(RuntimeError):  # whoever waited for the mean was told of the error
                done.wait()

    def _measure(self) -> None:
        self.measured = Metrics(step=self.step, density=self.density, began_at=time.perf_counter())
        self.dense = self.compressor.sends_all or (self.measured.density == 1 and not self.compressor.cuts)

    @property
    def _unused(self) -> bool:
        """Whether no optimizer has used the last backward, though torch shows their steps."""
        return self._counted and self._use is not None and self._use.unused

    def discard(self) -> None:
        """Forget the last backward: residuals and step are as before it.

        Raises:
            RuntimeError: an optimizer has used its mean.
        """
        if self._counted and self._use is not None and self._use.used:
            raise RuntimeError(
                "discard must come before the optimizer's step, got a backward whose mean was used. "
                "Call it in place of the step."
            )
        self.feedback.discard()
        self._dense.stop()
        self.step -= self._counted
        self._counted = False

    def settle(self) -> None:
        """End the last step, as far as that can be told: see ``ErrorFeedback.settle``."""
        moments, self._moments = self._moments, None
        if moments is not None:
            moments.wait()  # long there: the optimizer has stepped since
        self.feedback.settle()

    def _send_moments(self) -> None:
        step = None if self._rows is None else self._rows.exchange(f"second moments of step {self.measured.step}")
        if step is not None:
            self._moments = self.executor.submit(
                step.label, step.send, step.receive, multi_phase=self._phased, device=step.device
            )
            if step.device.type != "cpu":
                self._hold(self._moments, step)
            self.measured.sent_bytes += step.sent_bytes(self.world_size)

    def seal(self) -> None:
        """Say that every gradient of the step is under way."""
        if not self._dense.expected:
            if self._rows is not None:
                self._send_moments()
            self.executor.flush()
            self.feedback.seal()
            if self._plan.tuner is not None:
                self._plan.seal()
            if len(self._dense.sent) == self._parts:
                self._dense.expected = self._dense.sent
        self.step += 1
        self.exchanges += 1
        self._counted = not self._joined
        if self._use is not None:
            self._use.seal()
        self.measured.launched_at = time.perf_counter()
        if self.measured.kept < self.measured.numel or not self.measured.numel or self.dense:
            self._dense_steps = 0
        else:
            self._tell_of_dense()

    def _tell_of_dense(self) -> None:
        """Warn, once, that ``auto`` has long sent everything: then the hook costs and brings nothing."""
        self._dense_steps += 1
        if self._dense_steps == _DENSE_STEPS and not self._told_of_dense and self._rank == 0:
            self._told_of_dense = True
            what, remedy = _DENSE_REMEDIES[self._caller]
            warnings.warn(
                f"collective {self.collective} has sent whole {what} for {_DENSE_STEPS} steps: dense all-reduce is "
                f"faster on this link. {remedy}",
                stacklevel=2,
            )

    def repeat(self, layout_of: Callable[[], Layout], grad: Tensor) -> Done | None:
        """Start the mean of a whole gradient as in the last step; None where that does not say how it goes."""
        if not self._dense.expected or not self._dense.stop_unless_same(self._parts, grad):
            return None
        if self._clip is not None:
            self._clip.apply(layout_of(), [grad], self._scale)
        return self._dense.repeat(self._next_label(layout_of), grad)

    def reduce_dense(self, layout_of: Callable[[], Layout], grad: Tensor, held: Sequence[slice] = ()) -> Done:
        """Start the mean of the whole gradient and its residual; it comes back in ``grad``.

        Args:
            layout_of: returns the parameters in ``grad``; only asked where something depends on it, because a step
                that neither compresses nor keeps anything should cost what DDP's own does.
            grad: ``[numel]`` local gradient; becomes the mean in place.
            held: places of parameters without gradient, whose residual stays.
        """
        if self._clip is not None:
            self._clip.apply(layout_of(), [grad], self._scale)
        if self._rows is not None:
            self._rows.apply(layout_of(), [grad], self._scale)
        return self._dense.reduce(self._next_label(layout_of), layout_of, grad, held)

    def reduce_sparse(self, layout: Layout, grads: Sequence[Tensor], held: Sequence[slice] = ()) -> Done:
        """Start the mean of one selection over all the given gradients; it comes back in them.

        Args:
            layout: parameters in ``grads``, end to end.
            grads: flat local gradients; become the mean in place.
            held: places of parameters without gradient, whose residual stays.

        Returns:
            A future of the first gradient.
        """
        started = time.perf_counter()
        if self._clip is not None:
            self._clip.apply(layout, grads, self._scale)
        if self._rows is not None:
            self._rows.apply(layout, grads, self._scale)
        grad = grads[0] if len(grads) == 1 else torch.cat(list(grads))
        asked = self.selector.asked(layout, self.measured.density)
        collective = self._plan.choose(layout.numel, asked.k)
        if collective is None:  # to send all of it costs less
            return self._dense.reduce_parts(self._next_label(lambda: layout), layout, grad, grads, held)
        if self._dense.expected:
            self._dense.stop()
        step = BucketStep(self, self.measured, collective, layout, grads, grad, self._parts, self.exchanges)
        self._parts += 1
        self._phased |= collective.multi_phase
        step.take(asked, held, started)
        done = self.executor.submit(
            step.label, step.send, step.receive, multi_phase=collective.multi_phase, device=grad.device
        )
        if not grad.is_cpu:
            self._hold(done, step)
        return done

    def wait(self, done: Done) -> Tensor:
        """Wait for a mean where nothing can go on without it; on CUDA, the stream does.

        Raises:
            RuntimeError: a worker is gone.
        """
        self.executor.flush()  # an exchange of several messages would wait for the next one to begin
        return done.wait()

    def pass_through(self, grad: Tensor) -> torch.futures.Future[Any]:
        """Start the mean of a ``torch.sparse`` gradient, an embedding's, as DDP itself would."""
        work = dist.all_reduce(grad.div_(self.world_size), group=self.executor.group, async_op=True)
        assert work is not None  # async_op
        return then(work.get_future(), lambda done: done.value()[0])

    def _next_label(self, layout_of: Callable[[], Layout]) -> Callable[[], str]:
        part, step = self._parts, self.measured.step
        self._parts += 1
        return lambda: f"bucket {part} of step {step} ({layout_of().names[0]} to {layout_of().names[-1]})"

    def state_dict(self) -> dict[str, Any]:
        """Return copies of this worker's residuals, velocities, hints and step."""
        self.settle()
        return {
            "format": FORMAT,
            "rank": self._rank,
            "world_size": self.world_size,
            "step": self.step - self._unused,
            "exchanges": self.exchanges - self._unused,
            "scale": self._scale,
            "feedback": self.feedback.state_dict(),
            **({} if self._rows is None else {"precondition": self._rows.state_dict()}),
            "hints": {key: hint.clone() for key, hint in self.selector.hints.items()},
            "routes": {key: hint.clone() for key, hint in self.exchange_hints.items()},  # the name of older states
        }

    def require_fitting(self, state: Mapping[str, Any]) -> None:
        """Raise what ``load_state_dict`` would, and change nothing.

        Raises:
            ValueError: another format, another rank or number of workers, or another model.
        """
        try:
            require_same_worker(state, number=FORMAT, world_size=self.world_size, rank=self._rank)
            self.feedback.require_fitting(state["feedback"])
            if self._rows is not None:
                self._rows.require_fitting(state.get("precondition"))
            elif "precondition" in state:
                raise ValueError(
                    "state must be of a run without precondition, got one with second moments. Give compress the "
                    "precondition that it was saved with."
                )
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
        self._moments = None
        if self._rows is not None:
            self._rows.load_state_dict(state["precondition"])
        self.selector.load_hints(state["hints"])
        saved = state.get("routes", {})
        # older ones name no collective
        self.exchange_hints = {key: hint.clone() for key, hint in saved.items() if "@" in key}
        self.step, self._counted = state["step"], False
        self.exchanges = state.get("exchanges", self.step)
        self._dense.stop()
        self._scale = state.get("scale", 1.0)
