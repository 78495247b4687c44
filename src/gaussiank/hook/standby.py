"""Standby: while everything is sent whole and nothing is kept, DDP reduces by itself, without our hook.

A hook in Python costs each step some tenths of a millisecond, DDP's own as well as ours. So where ``auto`` finds dense
the faster way, the hook is taken off, and put on again when there is something to select.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.autograd import Variable
from torch.distributed.algorithms.join import JoinHook
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from gaussiank.layout import Layout

_FIRST_BUCKET_BYTES = 1 << 20  # of DDP, so that its first message leaves early


class Standby:
    """Watch the steps that DDP takes by itself, and take the hook off and on; between two backwards each time.

    Args:
        model: every parameter of it takes part in every step.
        passed: called in each backward that DDP synchronizes without the hook, on all workers; tells whether it may
            go on so.
        register: registers the hook.

    Attributes:
        on: whether DDP reduces by itself.
    """

    def __init__(
        self, model: DistributedDataParallel, passed: Callable[[], bool], register: Callable[[], None]
    ) -> None:
        self._model = weakref.ref(model)
        self._passed, self._register = passed, register
        self.on = False
        # DDP makes its reducer anew when it is unpickled, which it can for the default group alone
        self._renewable = type(model) is DistributedDataParallel and model.process_group == dist.group.WORLD

    @property
    def releasable(self) -> bool:
        """Whether a hook that is on can be taken off; not where workers may ``join`` early, and take no backward."""
        model = self._model()
        return self._renewable and model is not None and not model._join_config.enable

    def begin(self) -> None:
        """Watch: there is no hook."""
        if (model := self._model()) is not None:
            self.on = True
            model.__dict__["join_hook"] = self._join  # called on every worker that enters ``model.join()``
            *_, (_, first) = reduced_parameters(model)  # the last one's gradient is the first to be there
            self._watch = first.register_post_accumulate_grad_hook(self._notice)

    def end(self) -> None:
        """Put the hook on."""
        if self.on:
            self.on = False
            self._watch.remove()
            self._register()

    def take_off(self) -> None:
        """Take the hook off once the backward under way has ended."""
        _after_backward(self._release)

    def _release(self) -> None:
        """Let DDP make its reducer anew: that is what knows the hook."""
        if (model := self._model()) is not None:
            model._comm_hooks.clear()
            model.__setstate__(model.__getstate__())
            self.begin()

    def _notice(self, _: Tensor) -> None:
        model = self._model()
        if model is not None and model.require_backward_grad_sync and not self._passed():
            _after_backward(self.end)

    def _join(self, **settings: Any) -> JoinHook:
        """Put the hook on for good: it is called on workers that have joined early as well, and so counts with them."""
        self.end()
        model = self._model()
        assert model is not None  # it is being joined
        hook: JoinHook = DistributedDataParallel.join_hook(model, **settings)
        return hook


def _after_backward(callback: Callable[[], None]) -> None:
    """Call it when the backward under way has ended, DDP's part of it included."""

    def put_in_line(callback: Callable[[], None]) -> None:
        Variable._execution_engine.queue_callback(callback)

    put_in_line(lambda: put_in_line(callback))  # DDP is put in line after its last gradient: behind the first of these


def reduced_parameters(model: DistributedDataParallel) -> list[tuple[str, Parameter]]:
    """Return name and parameter of those that DDP reduces, in their order in the model."""
    ignored = set(getattr(model, "parameters_to_ignore", ()))
    named = model.module.named_parameters()
    return [(name, one) for name, one in named if one.requires_grad and name not in ignored]


def expected_buckets(model: DistributedDataParallel, *, whole: bool) -> list[Layout]:
    """Cut the parameters as DDP does before it has seen a backward, or not at all where ``whole``.

    DDP keeps dtypes apart, which this does not.
    """
    layouts: list[Layout] = []
    bucket: list[tuple[str, int]] = []
    size, cap_bytes = 0, min(_FIRST_BUCKET_BYTES, model.bucket_bytes_cap)
    for name, parameter in reversed(reduced_parameters(model)):
        bucket.append((name, parameter.numel()))
        size += parameter.nbytes
        if size >= cap_bytes and not whole:
            layouts.append(_layout(bucket))
            bucket, size, cap_bytes = [], 0, model.bucket_bytes_cap
    return layouts + ([_layout(bucket)] if bucket else [])


def _layout(bucket: list[tuple[str, int]]) -> Layout:
    names, numels = zip(*bucket, strict=True)
    return Layout(names, numels)
