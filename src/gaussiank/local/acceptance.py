"""What ``LocalSteps`` can take, and whether it is still that in every round."""

from __future__ import annotations

import gc
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from gaussiank.ops import RESIDUAL_DTYPES

from .vector import local_part

OuterOptimizer = Callable[[Iterable[Parameter]], Optimizer]
"""Makes the outer optimizer of the agreed weights."""

Buffers = Literal["average", "keep"]
LocalScope = Literal["fragment", "layer"]
Offload = Literal["cpu"]


def inner_module(model: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
    """Return the module whose parameters are exchanged: the model, without ``torch.compile`` and DDP around it.

    Raises:
        ValueError: the model is under DDP or FSDP2 over workers of the group.
    """
    module = getattr(model, "_orig_mod", model)
    own = set(dist.get_process_group_ranks(group))
    if isinstance(module, DistributedDataParallel):
        _require_apart(own, dist.get_process_group_ranks(module.process_group), "DistributedDataParallel")
        module = module.module
    for parameter in module.parameters():
        if (mesh := getattr(parameter, "device_mesh", None)) is not None:
            _require_apart(own, mesh.mesh.flatten().tolist(), "fully_shard (FSDP2)")
    return module


def warn_of_ddp(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Warn where a ``DistributedDataParallel`` over the same workers has a part of the module inside, unseen.

    Who gives ``LocalSteps`` the bare module of a DDP model gets gradients that are averaged at every step as well.
    """
    if not _under_ddp(module, group):
        return
    gc.collect()  # what was found may be garbage
    if _under_ddp(module, group):
        warnings.warn(
            "model is inside a DistributedDataParallel over workers of LocalSteps' group, which averages gradients at "
            "every step as well: nothing is saved. Leave DDP out, or give it a group inside a node and LocalSteps one "
            "between nodes.",
            stacklevel=5,
        )


def _under_ddp(module: nn.Module, group: dist.ProcessGroup | None) -> bool:
    own, workers = {id(one) for one in module.parameters()}, set(dist.get_process_group_ranks(group))
    for one in gc.get_objects():
        if issubclass(type(one), DistributedDataParallel) and (inside := one._modules.get("module")) is not None:
            try:
                shared = workers & set(dist.get_process_group_ranks(one.process_group))
            except (KeyError, ValueError):  # its group was destroyed: it averages no more
                continue
            if len(shared) > 1 and any(id(parameter) in own for parameter in inside.parameters()):
                return True
    return False


def _require_apart(own: set[int], theirs: Sequence[int], kind: str) -> None:
    shared = own & set(theirs)
    if len(shared) > 1:
        raise ValueError(
            f"model must not be under {kind} over the workers of LocalSteps' group, got one over ranks "
            f"{sorted(shared)}, which average or share out every step already. Give LocalSteps the bare module, or "
            f"{kind} a group inside a node and LocalSteps one between nodes."
        )


def trained_parameters(module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Parameter]:
    """Return the parameters that are exchanged, by name: those that are trained.

    Raises:
        ValueError: there is none, or one has a dtype without a residual, or no optimizer.
    """
    trained = {name: one for name, one in module.named_parameters() if one.requires_grad and local_part(one).numel()}
    if not trained:
        raise ValueError(
            "model must have parameters that require a gradient, got none. Give the model that is trained."
        )
    stepped = {id(one) for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]}
    for name, parameter in trained.items():
        if parameter.dtype not in RESIDUAL_DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in RESIDUAL_DTYPES)
            raise ValueError(
                f"dtype of parameter {name} must be one of {known}, got {parameter.dtype}. Freeze or convert it."
            )
        if id(parameter) not in stepped:
            raise ValueError(
                f"optimizer must step over every trained parameter, got one without {name}. Freeze it with "
                "requires_grad_(False), or give LocalSteps all optimizers, as a list."
            )
    return trained


class StepWatch:
    """Look at the inner optimizer's steps: training begins at the agreed weights, and ``local.step()`` follows each.

    Args:
        optimizer: the first inner one.
        sync_every: so many steps without ``local.step()`` are warned of.
        differences: each returns agreed weights less the model's.
        at_first: called before the first step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        sync_every: int,
        differences: Sequence[Callable[[], Iterable[Tensor]]],
        at_first: Callable[[], None],
    ) -> None:
        self._sync_every, self._differences, self._at_first = sync_every, differences, at_first
        self._begun = self._told = False
        self._alone = 0  # steps since local.step()
        optimizer.register_step_pre_hook(partial(_look, weakref.ref(self)))

    def counted(self) -> None:
        """``local.step()`` was called, or a state was loaded."""
        self._begun, self._alone = True, 0

    @torch.no_grad()
    def before_step(self) -> None:
        """The optimizer is about to step.

        Raises:
            RuntimeError: it is the first step, and the model has other weights than were agreed on.
        """
        if not self._begun and any(bool(one.any()) for each in self._differences for one in each()):
            raise RuntimeError(
                "model must begin at the weights that it had when LocalSteps was made, got others: of a checkpoint "
                "loaded since, most would stay in the residual. Load it before LocalSteps is made, or call local.load."
            )
        if not self._begun:
            self._at_first()
        self._begun = True
        self._alone += 1
        if self._alone > self._sync_every and not self._told:
            self._told = True
            warnings.warn(
                f"local.step() must follow each step of the optimizer, got {self._alone} without it: nothing is "
                "exchanged. Call it after optimizer.step().",
                stacklevel=4,
            )

    def require_counted(self) -> None:
        """Raise where the optimizer has taken more steps than a round has without ``local.step()``.

        Raises:
            RuntimeError: so it is.
        """
        if self._alone > self._sync_every:
            raise RuntimeError(
                f"local.finish() must follow local.step(), got {self._alone} steps of the optimizer since: all but a "
                "share of what they learnt would be lost. Call local.step() after each optimizer.step()."
            )


def _look(watch: weakref.ReferenceType[StepWatch], *_: object) -> None:
    alive = watch()
    if alive is not None:
        alive.before_step()


class Membership:
    """Which parameters the model trains and the optimizers step over, as it was when training began.

    Args:
        module: whose parameters are exchanged.
        optimizers: that step over them.
    """

    def __init__(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._module, self._optimizers = module, optimizers
        self._trained, self._stepped = self._now()

    def _now(self) -> tuple[dict[str, int], list[list[list[int]]]]:
        trained = {name: id(one) for name, one in self._module.named_parameters() if one.requires_grad}
        stepped = [[list(map(id, group["params"])) for group in one.param_groups] for one in self._optimizers]
        return trained, stepped

    def require_same(self) -> None:
        """Raise when it has changed.

        Raises:
            RuntimeError: a parameter is new, gone, frozen or thawed, or an optimizer's groups are others.
        """
        trained, stepped = self._now()
        for name in sorted(trained.keys() | self._trained.keys()):
            if trained.get(name) != self._trained.get(name):
                change = "a new one" if name not in self._trained else "it frozen, or gone"
                change = "another one in its place" if name in self._trained and name in trained else change
                raise RuntimeError(
                    f"parameter {name} must stay as it was when LocalSteps was made, got {change}. Save, make "
                    "LocalSteps anew on every worker, and load."
                )
        if stepped != self._stepped:
            raise RuntimeError(
                "param_groups of the optimizer must hold the parameters that they held when LocalSteps was made, got "
                "others. Change them before, or make LocalSteps anew on every worker."
            )


def require_turns(sync_every: int, fragments: int, sync_delay: int, mixing: float | None, parameters: int) -> None:
    """Raise unless these settings of turns go together, for a model of so many parameters.

    Raises:
        ValueError: they do not.
    """
    if sync_every < 1:
        raise ValueError(f"sync_every must be at least 1, got {sync_every}. 10 exchanges after every 10 steps.")
    if not 1 <= fragments <= min(sync_every, parameters):
        raise ValueError(
            f"fragments must be in [1, {min(sync_every, parameters)}], at most sync_every and the model's parameters, "
            f"got {fragments}. 1 exchanges the whole model at once."
        )
    if not 0 <= sync_delay < sync_every:
        raise ValueError(
            f"sync_delay must be in [0, {sync_every - 1}], below sync_every, got {sync_delay}. 0 waits for the mean."
        )
    if mixing is not None and not 0 <= mixing <= 1:
        raise ValueError(f"mixing must be in [0, 1] or None, got {mixing}. None loses no step.")
    if mixing is not None and not sync_delay:
        raise ValueError(f"mixing must be None where sync_delay is 0, got {mixing}. There is nothing to mix.")


def require_options(
    scope: str, buffers: str, check_every: int, residual_dtype: torch.dtype | None, offload: str | None
) -> None:
    """Raise unless each is in its range.

    Raises:
        ValueError: one is not.
    """
    if scope not in get_args(LocalScope):
        raise ValueError(f"scope must be one of {', '.join(get_args(LocalScope))}, got {scope!r}. Choose one of them.")
    if buffers not in get_args(Buffers):
        raise ValueError(f"buffers must be one of {', '.join(get_args(Buffers))}, got {buffers!r}. Choose one of them.")
    if check_every < 0:
        raise ValueError(f"check_every must be at least 0, got {check_every}. 0 never compares.")
    if residual_dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"residual_dtype must be torch.float32 or torch.bfloat16, got {residual_dtype}. Leave it out.")
    if offload not in (None, *get_args(Offload)):
        raise ValueError(f"offload must be cpu or None, got {offload!r}. Choose one of them.")


def made_outer(outer_optimizer: Any, agreed: Iterable[Parameter]) -> Optimizer:
    """Make the outer optimizer of the agreed weights; SGD with learning rate 1 for None.

    Raises:
        ValueError: it is no function that makes one.
    """
    if isinstance(outer_optimizer, Optimizer):
        name = type(outer_optimizer).__name__
        raise ValueError(
            f"outer_optimizer must be a function that makes one from parameters, got a {name} of its own. Write "
            f"outer_optimizer=lambda parameters: torch.optim.{name}(parameters, lr=...)."
        )
    if outer_optimizer is None:
        return torch.optim.SGD(agreed, lr=1.0)
    made = outer_optimizer(agreed) if callable(outer_optimizer) else outer_optimizer
    if not isinstance(made, Optimizer):
        raise ValueError(
            f"outer_optimizer must make a torch.optim.Optimizer, got {type(made).__name__}. Write lambda parameters: "
            "torch.optim.SGD(parameters, lr=0.7, momentum=0.9, nesterov=True), for example."
        )
    return made


def text_of(parameters: dict[str, Parameter]) -> str:
    """Name a model's parameters in few words that differ where the model does."""
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    numel = sum(parameter.numel() for parameter in parameters.values())
    return f"{len(shapes)} trained parameters of {numel} entries, {zlib.crc32(repr(shapes).encode()):08x}"


def forget_nonfinite(optimizer: Optimizer) -> None:
    """Zero what an optimizer remembers that is not finite: it would never recover."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                value.zero_()
