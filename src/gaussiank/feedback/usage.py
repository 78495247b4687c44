"""Whether an optimizer has used what was exchanged: what torch tells of its steps, and what became of the gradients."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Names = frozenset[str]


@dataclass(eq=False)
class _Steps:
    """The steps of one optimizer over our parameters.

    Args:
        names: those parameters.
        size: how many parameters it has in all; with another number it is looked at again.
        taken: whether it has completed one.
        running: whether one is under way, in a closure of it for example.
    """

    names: Names
    size: int
    taken: bool = False
    running: bool = False


@dataclass(eq=False)
class _Mean:
    """A mean that was handed to ``grad`` of some parameters.

    Args:
        names: those parameters.
        stepped: whether an optimizer has stepped over one of them since.
        skipped: what a ``GradScaler`` told a fused optimizer: a 0-d tensor, not 0 when that step changed nothing.
        seen: parameters whose ``grad`` was looked at before the next backward added to it.
        kept: whether one of them still held something.
    """

    names: Names
    stepped: bool = False
    skipped: Tensor | None = None
    seen: set[str] = field(default_factory=set)
    kept: bool = False


class OptimizerUse:
    """Watch the optimizers of a model's parameters, and its gradients where a step is left out.

    Torch tells of the steps of all its optimizers. Only where a backward was followed by none are gradients looked at,
    by hooks that run before the next backward adds to them: a mean that is still there waits for a step to come, one
    that was zeroed or taken away was never used.

    Args:
        parameters: name -> parameter.

    Attributes:
        steps: optimizer steps over these parameters that torch has shown.

    Example:
        >>> import torch
        >>> weight = Parameter(torch.zeros(2))
        >>> use = OptimizerUse({"w": weight})
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> weight.grad = torch.ones(2); use.exchanged(("w",)); optimizer.step(); use.of(("w",))
        True
        >>> use.exchanged(("w",)); print(use.of(("w",))); use.kept(("w",))
        None
        True
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._parameters = {name: weakref.ref(parameter) for name, parameter in parameters.items()}
        self._optimizers: weakref.WeakKeyDictionary[Optimizer, _Steps] = weakref.WeakKeyDictionary()
        self._means: dict[str, _Mean] = {}
        self._waiting: list[_Mean] = []  # those that no optimizer has stepped over
        self._looking = False  # whether a gradient is worth a look before a backward adds to it
        self._backward = self._joined = False
        self.steps = 0
        _WATCHING.add(self)
        looks = [
            parameter.register_hook(partial(_look, weakref.ref(self), name))
            for name, parameter in parameters.items()
            if parameter.requires_grad
        ]
        weakref.finalize(self, _remove, looks)

    # ------------------------------------------------------------------ what became of a mean

    @property
    def unknown(self) -> bool:
        """Whether no optimizer was ever seen to step over these parameters, or one is in the middle of a step."""
        return not self.steps or any(one.running for one in self._optimizers.values())

    def begin(self) -> bool:
        """Begin the exchanges of a backward; returns whether there is one.

        There is none on a worker that has joined early: what it still gives of its residuals is used by the others.
        """
        self._joined = not self._backward
        return self._backward

    def seal(self) -> None:
        """End the exchanges of a backward."""
        self._backward = False

    def exchanged(self, names: Iterable[str]) -> None:
        """Note that the mean of these parameters goes into their ``grad``."""
        mean = _Mean(frozenset(names), stepped=self._joined)
        self._means.update(dict.fromkeys(mean.names, mean))
        self._waiting = [one for one in self._waiting if one.names.isdisjoint(mean.names)]
        if not self._joined:
            self._waiting.append(mean)
        self._looking = self.steps > 0

    def of(self, names: Iterable[str]) -> bool | None:
        """Return whether the last mean of these parameters counts as used; None where that cannot be told yet.

        It does when an optimizer has stepped over one of them since, or is in the middle of a step; and where none was
        ever seen to step over them, because then torch shows nothing. It does not when a ``GradScaler`` made a fused
        optimizer skip.
        """
        names = tuple(names)
        steps = [one for one in self._optimizers.values() if not one.names.isdisjoint(names)]
        if any(one.running for one in steps) or not any(one.taken for one in steps):
            return True
        means = [mean for name in names if (mean := self._means.get(name)) is not None]
        if any(mean.stepped and not _is_set(mean.skipped) for mean in means):
            return True
        return False if any(mean.stepped for mean in means) else None

    def kept(self, names: Iterable[str]) -> bool:
        """Return whether the last mean of these parameters is still in ``grad``, or was when a backward added to it."""
        for name in names:
            mean = self._means.get(name)
            if mean is not None:
                self._see(name, mean)
                if mean.kept:
                    return True
        return False

    # ------------------------------------------------------------------ what torch tells

    def _begins(self, optimizer: Optimizer) -> None:
        if (steps := self._of(optimizer)) is not None:
            steps.running = True

    def _ends(self, optimizer: Optimizer) -> None:
        if (steps := self._of(optimizer)) is None:
            return
        self.steps += 1
        steps.taken, steps.running = True, False
        for mean in self._waiting:
            if not mean.names.isdisjoint(steps.names):
                mean.stepped, mean.skipped = True, getattr(optimizer, "found_inf", None)
        self._waiting = [mean for mean in self._waiting if not mean.stepped]
        self._looking = bool(self._waiting)

    def _of(self, optimizer: Optimizer) -> _Steps | None:
        """Return the steps of an optimizer that has some of our parameters, otherwise None."""
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        steps = self._optimizers.get(optimizer)
        if steps is None:
            steps = self._optimizers[optimizer] = _Steps(frozenset(self._ours(optimizer)), size)
        elif steps.size != size:
            steps.names, steps.size = frozenset(self._ours(optimizer)), size
        return steps if steps.names else None

    def _ours(self, optimizer: Optimizer) -> Iterator[str]:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter))
                if name is not None and self._parameters[name]() is parameter:  # an id may be used again
                    yield name

    def _see(self, name: str, mean: _Mean) -> None:
        if mean.stepped or mean.kept or name in mean.seen:
            return
        mean.seen.add(name)
        parameter = self._parameters[name]()
        grad = None if parameter is None else parameter.grad
        mean.kept = grad is not None and (grad.is_sparse or bool(grad.any()))


_WATCHING: weakref.WeakSet[OptimizerUse] = weakref.WeakSet()


def _tell_begin(optimizer: Optimizer, *_: Any) -> None:
    for use in list(_WATCHING):
        use._begins(optimizer)


def _tell_end(optimizer: Optimizer, *_: Any) -> None:
    for use in list(_WATCHING):
        use._ends(optimizer)


# registered once, for ever: a hook that is removed while torch goes through its hooks makes torch raise
register_optimizer_step_pre_hook(_tell_begin)
register_optimizer_step_post_hook(_tell_end)


def _look(own: weakref.ref[OptimizerUse], name: str, _: Tensor) -> None:
    use = own()
    if use is not None:
        use._backward = True
        if use._looking and (mean := use._means.get(name)) is not None:
            use._see(name, mean)


def _is_set(flag: Tensor | None) -> bool:
    return flag is not None and bool(flag)


def _remove(handles: Iterable[Any]) -> None:
    for handle in handles:
        handle.remove()
