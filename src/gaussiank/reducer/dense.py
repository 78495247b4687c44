"""Gradients that go out whole: the mean of all entries, with what the residual still holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gaussiank.collectives import Done, Engine, ring_bytes, then
from gaussiank.feedback import ErrorFeedback
from gaussiank.layout import Layout
from gaussiank.metrics import Metrics
from gaussiank.observer import Observer, Unobserved
from gaussiank.ops import all_finite

from .finite import require_finite

LayoutOf = Callable[[], Layout]


class DensePath:
    """Send whole gradients, and repeat a step that sent nothing else and kept nothing.

    In the next step its layouts, choices and residuals would come out the same. Between two backwards all that code has
    left the cache, and to run it costs a worker half a millisecond, which no message of a small model hides. A repeated
    step does little more than DDP's own all-reduce hook.

    Args:
        engine: carries the messages.
        feedback: the residuals.
        observer: told of every vector on its way.
        dtype: what gradients are rounded to on their way, None for their own.
        raise_nonfinite: raise when a mean is not finite.
        world_size: number of workers.
    """

    def __init__(
        self,
        engine: Engine,
        feedback: ErrorFeedback,
        observer: Observer,
        *,
        dtype: torch.dtype | None,
        raise_nonfinite: bool,
        world_size: int,
    ) -> None:
        self._engine, self._feedback, self._observer = engine, feedback, observer
        self._dtype, self._raise_nonfinite, self._world_size = dtype, raise_nonfinite, world_size
        self._observed = not isinstance(observer, Unobserved)
        self._untouched = not (self._observed or raise_nonfinite or dtype)  # nobody watches, judges or rounds a mean
        self._measured = Metrics()
        self._numels: list[int] = []  # of the step that can be repeated
        self._sent: list[int] = []  # numels of this step, as long as nothing was kept

    @property
    def repeatable(self) -> bool:
        """Whether the last step can be repeated."""
        return bool(self._numels)

    def begin(self, measured: Metrics, *, same: bool) -> None:
        """Begin a step; ``same``: nothing stands against repeating the last one."""
        self._measured, self._sent = measured, []
        if not same:
            self._numels = []

    def seal(self, exchanges: int) -> None:
        """End a step that has started so many exchanges in all."""
        if not self._numels and len(self._sent) == exchanges:
            self._numels = self._sent

    def stop(self) -> None:
        """Repeat no longer: something else happens in the step under way."""
        if self._numels:
            self._numels = []
            self._feedback.settle()  # left out at the begin of the step

    def repeats(self, part: int, grad: Tensor) -> bool:
        """Tell whether the gradient with a number goes as in the last step; once one does not, none does."""
        if part < len(self._numels) and grad.numel() == self._numels[part]:  # DDP may have built its buckets anew
            return True
        self.stop()
        return False

    def repeat(self, label: Callable[[], str], grad: Tensor) -> Done:
        """Start the mean of a gradient that ``repeats``, in place."""
        measured, numel, size = self._measured, grad.numel(), ring_bytes(grad, self._world_size)
        done = self._engine.average(label, grad, lambda left: measured.note_arrived(left, size))
        measured.note_taken(0.0, numel=numel, k=numel, kept=numel, dense_bytes=size)
        return done

    def reduce(self, label: Callable[[], str], layout_of: LayoutOf, grad: Tensor, held: Sequence[slice] = ()) -> Done:
        """Start the mean of the gradient and its residual; it comes back in ``grad``.

        Args:
            label: returns the name of the bucket, for errors.
            layout_of: returns the parameters in ``grad``; only asked where something depends on it.
            grad: ``[numel]`` local gradient; becomes the mean in place.
            held: places of parameters without gradient, whose residual stays.
        """
        measured, observed = self._measured, self._observed
        if observed:
            self._observer.taking(layout_of(), [grad])
        started = time.perf_counter()
        judged = not self._feedback.empty and self._feedback.take_all(layout_of(), grad, held=held)
        took_s = time.perf_counter() - started
        if observed:
            self._observer.taken(layout_of(), grad.numel(), None)
        dense_bytes = ring_bytes(grad, self._world_size)
        sent_bytes = dense_bytes * (self._dtype or grad.dtype).itemsize // grad.itemsize

        def arrived(left: float) -> None:
            measured.note_arrived(left, sent_bytes)
            if judged or self._raise_nonfinite:
                finite = all_finite(grad)
                if judged and measured is self._measured:  # else it is late, after an error
                    self._feedback.judge(finite)
                if self._raise_nonfinite:
                    require_finite(finite, layout_of(), [grad], measured.step)
            if observed:
                self._observer.arrived(layout_of(), [grad])

        done = self._engine.average(label, grad, arrived, self._dtype)
        numel = grad.numel()
        measured.note_taken(took_s, numel=numel, k=numel, kept=numel, dense_bytes=dense_bytes)
        if self._untouched and not judged:
            self._sent.append(numel)
        return done

    def reduce_parts(
        self, label: Callable[[], str], layout: Layout, grad: Tensor, parts: Sequence[Tensor], held: Sequence[slice]
    ) -> Done:
        """As ``reduce``; where ``grad`` is a copy of several parts, the mean is handed out to them.

        Returns:
            A future of the first part.
        """
        done = self.reduce(label, lambda: layout, grad, held)
        if grad is parts[0]:
            return done

        def hand_out(done: Done) -> Tensor:
            for part, mean in zip(parts, done.value().split([part.numel() for part in parts]), strict=True):
                part.copy_(mean)
            return parts[0]

        return then(done, hand_out)
