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
class _Covered:
    """What an optimizer steps over.

    Args:
        members: identities of all its parameters; with others it is looked at again.
        names: those of ours among them.
        held: whether one of ours had a ``grad`` when its last step began.
        over: means of which something was still in ``grad`` then.
        idle: whether that step changes nothing.
    """

    members: tuple[int, ...]
    names: Names
    held: bool = False
    idle: bool = False
    over: list[_Mean] = field(default_factory=list)


@dataclass(eq=False)
class _Mean:
    """A mean that was handed to ``grad`` of some parameters.

    Args:
        names: those parameters.
        inside: whether it came in the middle of a step, in a closure of it for example.
        stepped: whether an optimizer has stepped over one of them since.
        skipped: what a ``GradScaler`` told a fused optimizer: a 0-d tensor, not 0 when that step changed nothing.
        seen: parameters whose ``grad`` was looked at before a later backward added to it.
        gone: those of them where it was zero or None, and none of the mean is left whatever was added since.
    """

    names: Names
    inside: bool = False
    stepped: bool = False
    skipped: Tensor | None = None
    seen: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)


class OptimizerUse:
    """Watch the optimizers of a model's parameters, and its gradients where a step is left out.

    Torch tells of the steps of all its optimizers. Only where a backward was followed by none are gradients looked at,
    by hooks that run before the next backward adds to them: a mean that is still there waits for a step to come, one
    that was zeroed or taken away was never used.

    Args:
        parameters: name -> parameter.

    Attributes:
        steps: optimizer steps over these parameters that torch has shown.
        arrived: names, in the order in which gradients came in the first backward that was sealed.

    Example:
        >>> import torch
        >>> weight = Parameter(torch.zeros(2))
        >>> use = OptimizerUse({"w": weight})
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> weight.grad = torch.ones(2); use.exchanged(("w",)); optimizer.step(); use.of(("w",))
        True
        >>> use.exchanged(("w",)); print(use.of(("w",))); use.still_in_grad(("w",))
        None
        True
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._parameters = {name: weakref.ref(parameter) for name, parameter in parameters.items()}
        self._optimizers: weakref.WeakKeyDictionary[Optimizer, _Covered] = weakref.WeakKeyDictionary()
        self._shown: set[str] = set()  # over which an optimizer was ever seen to step, of those that are gone too
        self._running: Names = frozenset()  # over which one is in the middle of a step
        self._means: dict[str, _Mean] = {}
        self._waiting: list[_Mean] = []  # those that no optimizer has stepped over
        self._looking: list[weakref.ref[OptimizerUse]] = []  # this, while gradients are worth a look
        self._joined = self._inside = False
        self._since: list[Tensor | None] = []  # what a scaler told each step since the last backward, if it did
        self.steps = 0
        self.arrived: dict[str, None] = {}
        self._sealed = False
        self._looking.append(weakref.ref(self))
        _WATCHING[:] = [own for own in _WATCHING if own() is not None] + [weakref.ref(self)]
        looks = [
            parameter.register_hook(partial(_look, self._looking, name))
            for name, parameter in parameters.items()
            if parameter.requires_grad
        ]
        weakref.finalize(self, _remove, looks)

    # ------------------------------------------------------------------ what became of a mean

    @property
    def used(self) -> bool:
        """Whether an optimizer has stepped over something since the last backward, and not in vain."""
        return not all(map(bool, self._since))

    @property
    def unused(self) -> bool:
        """Whether none has, though torch shows such steps; a backward in the middle of a step is used."""
        return bool(self._shown) and not self._inside and all(map(bool, self._since))

    def begin(self, *, joined: bool = False) -> None:
        """Begin the exchanges of a backward.

        Args:
            joined: whether this worker has no backward: its data ended early (DDP's ``Join``). What it sends of its
                residuals counts as used, because the others' optimizers step.
        """
        self._since, self._inside, self._joined = [], bool(self._running), joined

    def exchanged(self, names: Iterable[str]) -> None:
        """Note that the mean of these parameters goes into their ``grad``."""
        mean = _Mean(frozenset(names), stepped=self._joined)
        mean.inside = not mean.names.isdisjoint(self._running)
        self._means.update(dict.fromkeys(mean.names, mean))
        self._waiting = [one for one in self._waiting if one.names.isdisjoint(mean.names)]
        if not self._joined:
            self._waiting.append(mean)

    def seal(self) -> None:
        """End the exchanges of a backward: what the next one adds to is worth a look, unless a step comes before."""
        self._looking[:] = [weakref.ref(self)] if self.steps and self._waiting else []
        self._sealed = True

    def of(self, names: Iterable[str]) -> bool | None:
        """Return whether the last mean of these parameters counts as used; None where that cannot be told yet.

        It does when an optimizer has stepped over one of them since, or was in the middle of a step when it came; and
        where none was ever seen to step over them, because then torch shows nothing. It does not when a ``GradScaler``
        made a fused optimizer skip.
        """
        names = tuple(names)
        if self._shown.isdisjoint(names):
            return True
        means = [mean for name in names if (mean := self._means.get(name)) is not None]
        if any(mean.inside or (mean.stepped and not mean.skipped) for mean in means):
            return True
        return False if any(mean.stepped for mean in means) else None

    def still_in_grad(self, names: Iterable[str]) -> bool:
        """Return whether the last mean of these parameters is still in ``grad``, or was when a backward added to it."""
        found = False
        for name in names:
            if (mean := self._means.get(name)) is not None:
                if name not in mean.seen:  # no backward has come to it
                    self._see(name, mean)
                found = found or name not in mean.gone
        return found

    # ------------------------------------------------------------------ what torch tells

    def _begins(self, optimizer: Optimizer) -> None:
        members = tuple(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
        covered = self._optimizers.get(optimizer)
        if covered is None or covered.members != members:
            covered = self._optimizers[optimizer] = _Covered(members, frozenset(self._ours(optimizer)))
        self._running |= covered.names
        covered.idle = changes_nothing(optimizer)
        covered.held = any(map(self._has_grad, covered.names))
        covered.over = [mean for mean in self._waiting if any(map(self._has_grad, mean.names & covered.names))]

    def _ends(self, optimizer: Optimizer) -> None:
        covered = self._optimizers.get(optimizer)
        if covered is None or not (names := covered.names):
            return
        if covered.idle:
            self._running -= names
            return
        self.steps += 1
        self._shown |= names
        # of those too that raised in the middle: what they ran around has been stepped over
        self._running = frozenset()
        skipped: Tensor | None = getattr(optimizer, "found_inf", None)
        if covered.held or self._inside:
            self._since.append(skipped)
        for mean in self._waiting:
            if mean in covered.over or (mean.inside and not mean.names.isdisjoint(names)):
                mean.stepped, mean.skipped = True, skipped
        covered.over = []
        self._waiting = [mean for mean in self._waiting if not mean.stepped]
        if not self._waiting:
            self._looking.clear()

    def _has_grad(self, name: str) -> bool:
        parameter = self._parameters[name]()
        return parameter is not None and parameter.grad is not None

    def _ours(self, optimizer: Optimizer) -> Iterator[str]:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter))
                if name is not None and self._parameters[name]() is parameter:  # an id may be used again
                    yield name

    def _see(self, name: str, mean: _Mean) -> None:
        if mean.stepped or name in mean.gone:
            return
        mean.seen.add(name)
        parameter = self._parameters[name]()
        if parameter is None or not _is_there(parameter.grad):
            mean.gone.add(name)


def changes_nothing(optimizer: Optimizer) -> bool:
    """Tell whether the step that begins is none: its rate is 0, and so are all gradients.

    ``torch.distributed.checkpoint`` takes one where an optimizer has no state yet, to make what it loads into.
    """
    rates = [group.get("lr", 1.0) for group in optimizer.param_groups]
    if any(bool(rate) for rate in rates if not isinstance(rate, Tensor) or rate.is_cpu):  # torch's own is on the CPU
        return False
    grads = (parameter.grad for group in optimizer.param_groups for parameter in group["params"])
    return len(rates) > 0 and not any(_is_there(grad) for grad in grads)


def _is_there(grad: Tensor | None) -> bool:
    """Tell whether something is left of a gradient."""
    grad = getattr(grad, "_local_tensor", grad)  # of a DTensor: to look at all of it would send messages
    return grad is not None and (grad.is_sparse or bool(grad.any()))


_WATCHING: list[weakref.ref[OptimizerUse]] = []


def _tell_begin(optimizer: Optimizer, *_: Any) -> None:
    for own in _WATCHING:
        if (use := own()) is not None:
            use._begins(optimizer)


def _tell_end(optimizer: Optimizer, *_: Any) -> None:
    for own in _WATCHING:
        if (use := own()) is not None:
            use._ends(optimizer)


# registered once, for ever: a hook that is removed while torch goes through its hooks makes torch raise
register_optimizer_step_pre_hook(_tell_begin)
register_optimizer_step_post_hook(_tell_end)


def _look(looking: list[weakref.ref[OptimizerUse]], name: str, _: Tensor) -> None:
    if looking:  # in an ordinary loop it never is
        use = looking[0]()
        if use is not None and not use._sealed:
            use.arrived.pop(name, None)
            use.arrived[name] = None
        if use is not None and (mean := use._means.get(name)) is not None:
            use._see(name, mean)


def _remove(handles: Iterable[Any]) -> None:
    for handle in handles:
        handle.remove()
