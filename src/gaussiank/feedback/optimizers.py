"""What optimizers do with a mean: have they used it, and do they and the loop go with the compression?"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gaussiank.metrics import Metrics
from gaussiank.momentum import MomentumCorrection

# ---------------------------------------------------------------------- was a mean used?


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
    for check in list(_CHECKS):  # a copy: an owner may go meanwhile
        check(optimizer)


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


# ---------------------------------------------------------------------- do optimizer and compression go together?


_STEPS = 2  # without a call of the hook, until that is said; before the first, an ``L-BFGS`` has taken no backward yet


class AdamWarning(UserWarning):
    """An Adam-like optimizer with momentum beside error feedback; ``warnings.filterwarnings`` can leave it out.

    Example:
        >>> import warnings
        >>> warnings.filterwarnings("ignore", category=AdamWarning)
    """


class Measured(Protocol):
    """What exchanges the gradients of a compression."""

    @property
    def measured(self) -> Metrics:
        """Measurements of the last step, another object in each."""


class Owner(Protocol):
    """What is looked at of a compression."""

    @property
    def _reducer(self) -> Measured:
        """What counts its steps."""

    @property
    def resumed(self) -> bool:
        """Whether it goes on from a state."""


_SCALER = (
    "scaler must be the GradScaler that scales the loss, got none: when its scale changes, residuals keep the old "
    "unit. Give it to gaussiank.compress(..., scaler=scaler)."
)
_ADAM = (
    "betas of {name} start above 0: momentum delays entries that error feedback has delayed already. A transformer of "
    "195,360 parameters ended 2,000 steps at density 0.0045 0.31 nats a byte above dense training; divided first, with "
    'compress(precondition=gaussiank.AdamRows(), scope="layer", clip_norm=...) and torch.optim.SGD(lr, weight_decay), '
    'level with it; with betas=(0.0, 0.999) and scope="layer" 0.08 above. Tune the learning rate again; docs/adamw.md. '
    "Filter gaussiank.AdamWarning to be told no more."
)
_CUT = (
    "the gradient has norm {norm:.3g} before {name}'s step, where a mean of divided gradients has about {usual:.3g}: "
    "something cuts it after backward, as clip_grad_norm_ does, and training all but stands still. Take it out, and "
    "give compress clip_norm=..., which clips before the division; docs/adamw.md."
)
_LEAST_ENTRIES, _LEAST_SHARE = 400, 0.05  # of what is sent, to judge by its norm; of the usual norm, or it was cut
_UNCALLED = (
    "compression is not at work: {name} takes its second step in a row on gradients that were not exchanged by it. "
    "Call the model that was given to gaussiank.compress, not the bare module in it; where a framework wraps the model "
    "again, give compress the DistributedDataParallel that it has made; docs/frameworks.md."
)
_NOT_RESUMED = (
    "{name} goes on from earlier steps, but compression begins without residuals: what the earlier steps held back is "
    "lost, if they were compressed. Save with compression.save(folder), and resume with "
    "compression.load(folder) before the first step."
)
_REPEATED = (
    "{name} takes a second step on the mean of one backward: the gradient is used twice. Call optimizer.step() once "
    "after each backward, or zero the gradient in between."
)


def check_optimizers(
    owner: Owner,
    parameters: Iterable[Parameter],
    momentum: MomentumCorrection | None,
    scaler: torch.amp.GradScaler | None,
    *,
    has_residual: bool,
    preconditioned: bool = False,
    exchanges: Callable[[], bool] = lambda: True,
    rank: int = 0,
) -> None:
    """Check the optimizers of these parameters when they are about to take a step.

    torch tells of the steps of all optimizers, until ``owner`` is gone. What is found is said once.

    Args:
        owner: the compression. A warning is given before the second step in a row of an optimizer that has gradients
            of these parameters, and before which its hook was not called; and before one on gradients that it has
            stepped on already.
        parameters: of the compressed model.
        momentum: a ``ValueError`` is raised in a step whose optimizer has momentum as well.
        scaler: without one, a warning is given in a step that a ``GradScaler`` takes with a fused optimizer. Other
            optimizers are not told of theirs.
        has_residual: with one, an ``AdamWarning`` is given in the first step of an optimizer with ``betas[0]`` above 0
            that follows a sparse exchange, and a warning where an optimizer goes on from earlier steps and the
            compression does not. Without one, neither these nor the scale matters.
        preconditioned: a ``ValueError`` is raised in a step whose optimizer has momentum or second moments as well.
        exchanges: tells whether the model's last forward was one whose backward calls the hook.
        rank: of this worker; rank 0 gives the ``AdamWarning`` for all.
    """
    velocity = momentum is not None and momentum.momentum > 0
    beside = "precondition" if preconditioned else "a MomentumCorrection" if velocity else ""
    check = _Check(
        owner, parameters, beside=beside, scaled=has_residual and scaler is None, feedback=has_residual,
        exchanges=exchanges, rank=rank,
    )  # fmt: skip
    for other in list(_CHECKS):
        if other.shares(check):
            other.replaced = True
    _CHECKS.add(check)
    weakref.finalize(owner, _CHECKS.discard, check).atexit = False


def _warn_of_cut(optimizer: Optimizer, groups: Sequence[Mapping[str, Any]], measured: Metrics) -> None:
    """Warn where a first mean of divided gradients is much shorter than the entries that were chosen for it.

    Each of those is about as large as its row's root mean square or larger, which is 1 after the division.
    """
    grads = [one.grad for group in groups for one in group["params"] if one.grad is not None]
    grads = [getattr(grad, "to_local", lambda grad=grad: grad)() for grad in grads]
    sent = measured.kept * sum(grad.numel() for grad in grads) / measured.numel
    squares = [torch.linalg.vector_norm(grad.float()).square() for grad in grads if not grad.is_sparse]
    norm, usual = math.sqrt(sum(map(float, squares))), math.sqrt(sent)
    if sent >= _LEAST_ENTRIES and 0 < norm < _LEAST_SHARE * usual:
        warnings.warn(_CUT.format(name=type(optimizer).__name__, norm=norm, usual=usual), stacklevel=6)


def told_of_adam(owner: Owner) -> None:
    """Say that whoever owns a compression was told of its optimizer's momentum: no ``AdamWarning`` follows."""
    for check in _CHECKS:
        if check.owner() is owner:
            check.tells_of_adam = False


_Version = tuple[int, int] | None  # identity and version of a tensor


@dataclass
class _Seen:
    """What is known of an optimizer.

    Attributes:
        groups: number of its groups.
        ours: places of those that have our parameters.
        metrics: of the last step before its last one.
        idle: steps in a row before which the hook was not called.
        looked_at: its settings are right.
        exchanged: a sparse exchange was seen before one of its steps.
        stepped_on: identity and version of a gradient that its last step took, right after it was exchanged.
        weights: identity and version of the parameter of that gradient, before the step.
    """

    groups: int
    ours: list[int]
    metrics: Metrics
    idle: int = 0
    looked_at: bool = False
    exchanged: bool = False
    stepped_on: _Version = None
    weights: _Version = None


_CHECKS: set[_Check] = set()


class _Check:
    """What is called before a step of any optimizer.

    Attributes:
        replaced: another compression was made of the same parameters, so that this one is called no more.
    """

    def __init__(
        self,
        owner: Owner,
        parameters: Iterable[Parameter],
        *,
        beside: str,
        scaled: bool,
        feedback: bool,
        exchanges: Callable[[], bool],
        rank: int,
    ) -> None:
        self.owner, self._first = weakref.ref(owner), owner._reducer.measured
        self._parameters = {id(parameter): weakref.ref(parameter) for parameter in parameters}
        self._beside, self._scaled, self._exchanges = beside, scaled, exchanges
        self._fresh, self.tells_of_adam = feedback, feedback and rank == 0
        self._seen: weakref.WeakKeyDictionary[Optimizer, _Seen] = weakref.WeakKeyDictionary()
        self.replaced = self._told_of_repetition = False

    def __call__(self, optimizer: Optimizer) -> None:
        owner = self.owner()
        seen = self._seen.get(optimizer)
        if seen is None or seen.groups != len(optimizer.param_groups):
            groups = optimizer.param_groups
            ours = [place for place, group in enumerate(groups) if any(map(self._is_ours, group["params"]))]
            seen = self._seen[optimizer] = _Seen(len(groups), ours, self._first)
        if owner is None or not seen.ours or changes_nothing(optimizer):
            return
        groups = [optimizer.param_groups[place] for place in seen.ours]
        if not seen.looked_at:
            seen.looked_at = True
            self._look_once(owner, optimizer, groups)
        measured = owner._reducer.measured
        grad, weights = self._versions(groups)
        if measured is seen.metrics and weights is not None and weights == seen.weights:
            return  # a step() in a subclass's step(): one step
        if self.tells_of_adam and not seen.exchanged and measured.kept < measured.numel:
            seen.exchanged = True
            self._tell_of_first(optimizer, groups, measured)
        if self._is_repeated(seen, grad, weights, measured):
            if not self._told_of_repetition:
                warnings.warn(_REPEATED.format(name=type(optimizer).__name__), stacklevel=4)
            self._told_of_repetition = True
        elif not self.replaced and self._is_uncalled(seen, grad, measured):
            self.replaced = True
            warnings.warn(_UNCALLED.format(name=type(optimizer).__name__), stacklevel=4)

    def _tell_of_first(self, optimizer: Optimizer, groups: list[dict[str, Any]], measured: Metrics) -> None:
        """Look at an optimizer's first step after a sparse exchange."""
        if self._beside == "precondition":
            _warn_of_cut(optimizer, groups, measured)
        elif any(group.get("betas") and group["betas"][0] > 0 for group in groups):
            self.tells_of_adam = False
            warnings.warn(_ADAM.format(name=type(optimizer).__name__), AdamWarning, stacklevel=5)

    def _look_once(self, owner: Owner, optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
        if self._beside:
            for group in groups:
                _require_no_momentum(optimizer, group, self._beside)
        self._tell_of_lost_residuals(owner, optimizer, groups)
        if self._scaled and hasattr(optimizer, "found_inf"):  # what a scaler gives to a fused optimizer
            self._scaled = False
            warnings.warn(_SCALER, stacklevel=5)

    def _tell_of_lost_residuals(self, owner: Owner, optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
        if not self._fresh or owner.resumed or owner._reducer.measured is self._first:
            return
        ours = (parameter for group in groups for parameter in group["params"] if self._is_ours(parameter))
        if any(_remembers(optimizer.state.get(parameter, {})) for parameter in ours):  # made in its first step
            self._fresh = False
            warnings.warn(_NOT_RESUMED.format(name=type(optimizer).__name__), stacklevel=6)

    def _versions(self, groups: list[dict[str, Any]]) -> tuple[_Version, _Version]:
        """Return identity and version of the first gradient of ours that is there, and of its parameter."""
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is not None and self._is_ours(parameter):
                    grad = parameter.grad
                    return (id(grad), grad._version), (id(parameter), parameter._version)
        return None, None

    def _is_repeated(self, seen: _Seen, grad: _Version, weights: _Version, metrics: Metrics) -> bool:
        called = metrics is not seen.metrics
        repeated = not called and grad is not None and grad == seen.stepped_on
        seen.stepped_on, seen.weights = grad if called or repeated else None, weights
        return repeated

    def _is_uncalled(self, seen: _Seen, grad: _Version, metrics: Metrics) -> bool:
        called, seen.metrics = metrics is not seen.metrics, metrics
        if called or not self._exchanges():
            seen.idle = 0
        elif grad is not None:
            seen.idle += 1
        return seen.idle == _STEPS

    def shares(self, other: _Check) -> bool:
        """Tell whether they look at a parameter both."""
        return any(map(self._is_ours, (known() for known in other._parameters.values())))

    def _is_ours(self, parameter: Parameter | None) -> bool:
        known = self._parameters.get(id(parameter))
        return known is not None and known() is parameter  # an id may be used again


def _remembers(state: Mapping[str, Any]) -> bool:
    """Tell whether what an optimizer knows of a parameter is of a gradient, and not zeros made to load into."""
    held = [one for key, one in state.items() if key != "step" and one is not None]
    tensors = [getattr(one, "_local_tensor", one) for one in held if isinstance(one, Tensor)]  # a DTensor's would send
    return any(bool(one.any()) for one in tensors) if tensors else bool(held)


def _require_no_momentum(optimizer: Optimizer, group: dict[str, Any], beside: str) -> None:
    momentum, betas = group.get("momentum", 0.0), group.get("betas")
    name = type(optimizer).__name__
    if momentum:
        raise ValueError(
            f"momentum of the optimizer must be 0 beside {beside}, got {momentum} in {name}: it would "
            "count twice. Set the optimizer's to 0, or leave one out of compress."
        )
    if beside == "precondition" and (betas or {"alpha", "lr_decay", "beta2_decay"} & group.keys()):
        raise ValueError(
            f"optimizer must be one without second moments beside {beside}, got {name}: gradients would be divided "
            "twice. Step with torch.optim.SGD(lr, weight_decay)."
        )
    if betas and betas[0]:
        raise ValueError(
            f"betas of the optimizer must start with 0 beside {beside}, got {betas} in {name}: momentum "
            "would count twice. Set the first to 0, or leave the correction out."
        )
