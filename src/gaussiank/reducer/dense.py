"""Gradients that go out whole: the mean of all entries, with what the residual still holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gaussiank.comm import Done, all_reduce_bytes, then
from gaussiank.layout import Layout
from gaussiank.ops import all_finite

if TYPE_CHECKING:
    from .reducer import GradientReducer

LayoutOf = Callable[[], Layout]


class DensePath:
    """Send whole gradients, and repeat a step that sent nothing else and kept nothing.

    In the next step its layouts, choices and residuals would come out the same. Between two backwards all that code has
    left the cache, and to run it costs a worker half a millisecond, which no message of a small model hides. A repeated
    step does little more than DDP's own all-reduce hook.

    Args:
        reducer: whose executor, residuals and observer it uses.

    Attributes:
        expected: numels of the last step's gradients, while each that comes is the same and goes the same way; empty
            where nothing can be repeated.
        sent: numels of this step's gradients, as long as nothing was kept, rounded, judged or watched.
    """

    def __init__(self, reducer: GradientReducer) -> None:
        self._reducer = reducer
        self._dtype = reducer.compressor.dense_dtype
        self._untouched = not (reducer.observer or reducer.raise_nonfinite or self._dtype)
        self.expected: list[int] = []
        self.sent: list[int] = []

    def stop(self) -> None:
        """Repeat no longer: something else happens in the step under way."""
        if self.expected:
            self.expected = []
            self._reducer.feedback.settle()  # left out at the begin of the step

    def stop_unless_same(self, part: int, grad: Tensor) -> bool:
        """Stop repeating unless the gradient with a number goes as in the last step; returns whether it does."""
        if part < len(self.expected) and grad.numel() == self.expected[part]:  # DDP may have built its buckets anew
            return True
        self.stop()
        return False

    def repeat(self, label: Callable[[], str], grad: Tensor) -> Done:
        """Start the mean of a gradient that goes as in the last step, in place."""
        measured, numel = self._reducer.measured, grad.numel()
        size = all_reduce_bytes(grad, self._reducer.world_size)
        done = self._reducer.executor.average(label, grad, lambda left: measured.note_received(left, size))
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
        reducer, measured, observer = self._reducer, self._reducer.measured, self._reducer.observer
        if observer:
            observer.taking(layout_of(), [grad])
        started = time.perf_counter()
        judged = not reducer.feedback.empty and reducer.feedback.take_all(layout_of(), grad, held=held)
        took_s = time.perf_counter() - started
        if observer:
            observer.taken(layout_of(), grad.numel(), None)
        dense_bytes = all_reduce_bytes(grad, reducer.world_size)
        sent_bytes = dense_bytes * (self._dtype or grad.dtype).itemsize // grad.itemsize

        def arrived(left: float) -> None:
            measured.note_received(left, sent_bytes)
            if judged or reducer.raise_nonfinite:
                finite = all_finite(grad)
                if judged and measured is reducer.measured:  # else it is late, after an error
                    reducer.feedback.record_finite(finite)
                if reducer.raise_nonfinite:
                    require_finite(finite, layout_of(), [grad], measured.step)
            if observer:
                observer.arrived(layout_of(), [grad])

        done = reducer.executor.average(label, grad, arrived, self._dtype)
        numel = grad.numel()
        measured.note_taken(took_s, numel=numel, k=numel, kept=numel, dense_bytes=dense_bytes)
        if self._untouched and not judged:
            self.sent.append(numel)
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


def require_finite(finite: Tensor, layout: Layout, grads: Sequence[Tensor], step: int) -> None:
    """Raise when a mean is not finite; names the first parameter that is not.

    Args:
        finite: 0-d bool tensor, whether the mean is.
        layout: parameters in ``grads``, end to end.
        grads: the mean.
        step: number of the step.

    Raises:
        RuntimeError: infinity or NaN came from some worker.
    """
    if bool(finite):
        return
    mean = torch.cat(list(grads))
    for name, place in layout.slices():
        if not bool(torch.isfinite(mean[place]).all()):
            raise RuntimeError(
                f"gradient of {name} must be finite, got infinity or NaN on some worker in step {step}. No residual "
                "was changed; lower the learning rate, or let a GradScaler skip such steps with "
                "on_nonfinite='propagate'."
            )
