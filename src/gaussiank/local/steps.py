"""``LocalSteps``: when which fragment takes its turn, and what a user calls."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from gaussiank import __version__
from gaussiank.autotune import parse_policy
from gaussiank.codec import Wire
from gaussiank.collectives import Collective
from gaussiank.comm import await_all, require_agreement
from gaussiank.compressors import Compressor, parse_compressor
from gaussiank.metrics import Metrics
from gaussiank.reducer import Settings
from gaussiank.schedule import Constant, Schedule, require_density

from .acceptance import Membership, inner_module, trained_parameters
from .fragment import Fragment
from .vector import local_part, split

OuterOptimizer = Callable[[Iterable[Parameter]], Optimizer]
"""Makes the outer optimizer of the agreed weights."""

_WIRE = "rice+2bit"


class LocalSteps:
    """Train alone for ``sync_every`` steps, then exchange what was learnt: the difference, sparse, with feedback.

    Call ``step`` after each ``optimizer.step()``. In a round the difference between the weights that all workers agreed
    on last and the local ones joins a residual; the largest entries are sent, the rest waits:
    ``residual_after + sent == decay * residual_before + difference``, bit for bit. The mean over workers is the
    gradient of an outer optimizer, which steps the agreed weights; every worker ends a round with the same ones.

    Args:
        model: any module, or one under DDP or FSDP2 over a group of its own, inside a node. Rank 0's weights and
            buffers go to all workers of the group, as with DDP.
        optimizer: steps over all its trained parameters; several as a list.
        sync_every: inner steps between two rounds of a parameter; more send less often, and workers drift further.
        density: share of entries to send, in (0, 1], or a schedule of it over rounds; a larger one sends more.
        compressor: which entries: a name, ``name:field=value``, or a compressor.
        wire: how entries travel, ``index+values`` or a ``codec.Wire``; None for ``rice+2bit``, and for whole float32
            vectors at density 1. What rounding takes off stays in the residual.
        collective: how workers agree on the mean: a name, ``name:field=value``, or a collective.
        decay: what a residual is multiplied by in each round, in [0, 1]; at 1 nothing is forgotten, below it is an
            outer momentum.
        outer_optimizer: makes the optimizer of the agreed weights from its parameters, ``lambda parameters:
            torch.optim.SGD(parameters, lr=0.7, momentum=0.9, nesterov=True)`` for DiLoCo; None for SGD with learning
            rate 1, the mean itself.
        fragments: number of parts of the model that take turns; more make traffic more even.
        sync_delay: inner steps from a fragment's sending to its applying, below ``sync_every``; training does not wait.
        mixing: what becomes of local steps in between: None puts them on top of the new agreed weights, a share in
            [0, 1] keeps ``mixing * local + (1 - mixing) * agreed``.
        group: process group, or None for the default one.
        timeout_s: seconds after which an exchange fails that a worker did not answer; None for the group's own.

    Attributes:
        outer_optimizer: steps the agreed weights; for a scheduler of its learning rate.
        steps: inner steps so far.

    Raises:
        ValueError: an argument out of its range, a model that something else averages over the same workers, or workers
            that are configured differently.

    Source: Douillard et al. 2023, "DiLoCo: Distributed Low-Communication Training of Language Models", algorithm 1;
    Sarfi et al. 2025, "Communication Efficient LLM Pre-training with SparseLoCo" (Top_k and feedback of the
    difference); Douillard et al. 2025, "Streaming DiLoCo with overlapping communication", algorithm 2 (fragments,
    delay, ``mixing``). Differs: the default of ``mixing`` loses no step.

    Example:
        >>> import tempfile
        >>> store = f"file://{tempfile.mkdtemp()}/store"
        >>> dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        >>> model = torch.nn.Linear(100, 10)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> local = LocalSteps(model, optimizer, sync_every=2)
        >>> for _ in range(4):
        ...     model(torch.ones(1, 100)).sum().backward()
        ...     optimizer.step()
        ...     changed = local.step()
        >>> local.metrics.kept, local.metrics.numel
        (16, 1010)
        >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        sync_every: int = 30,
        density: float | Schedule = 1 / 64,
        compressor: str | Compressor = "chunktopk",
        wire: str | Wire | None = None,
        collective: str | Collective = "allgather",
        decay: float = 0.95,
        outer_optimizer: OuterOptimizer | None = None,
        fragments: int = 1,
        sync_delay: int = 0,
        mixing: float | None = None,
        group: dist.ProcessGroup | None = None,
        timeout_s: float | None = None,
    ) -> None:
        optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        module = inner_module(model, group)
        parameters = trained_parameters(module, optimizers)
        _require_turns(sync_every, fragments, sync_delay, mixing, len(parameters))
        settings = Settings(
            density if callable(density) else Constant(require_density(density)),
            parse_compressor(compressor) if isinstance(compressor, str) else compressor,
            collective=parse_policy(collective) if isinstance(collective, str) else collective,
            wire=wire if isinstance(wire, Wire) else Wire.parse(wire or _WIRE),
            timeout_s=timeout_s,
            decay=decay,
        )
        self._module, self._optimizers, self._group = module, optimizers, group
        self._members = Membership(module, optimizers)
        self._sync_every, self._sync_delay, self._mixing = sync_every, sync_delay, mixing
        self.steps = 0
        self._config = {
            "gaussiank version": __version__,
            "sync_every": sync_every,
            **{
                name: value
                for name, value in settings.agreed().items()
                if name not in ("scope", "momentum", "clip_norm")
            },
            "decay": decay,
            "fragments": fragments,
            "sync_delay": sync_delay,
            "mixing": mixing,
            "model": _text_of(parameters),
        }
        await_all(group, what="gaussiank.LocalSteps")
        require_agreement(self._config, group)
        self._broadcast()
        whole = wire is None or settings.wire.exact
        self._fragments = [
            Fragment(part, settings, group=group, home=None, resting=None, whole=whole)
            for part in split(parameters, fragments)
        ]
        self._weights = {
            name: Parameter(view, requires_grad=False)
            for fragment in self._fragments
            for vector in fragment.vectors
            for name, view in zip(vector.layout.names, vector.views(vector.agreed), strict=True)
        }
        self.outer_optimizer = _made(outer_optimizer, self._weights.values())
        require_agreement({"outer_optimizer": self.outer_optimizer}, group)
        self._flying: deque[Fragment] = deque()
        self._last = self._fragments[-1]

    @property
    def metrics(self) -> Metrics:
        """Measurements of the last round that ended; its ``step`` counts the rounds of a fragment."""
        return self._last.metrics

    def agreed(self) -> dict[str, Tensor]:
        """Return copies of the weights that all workers agreed on last, by parameter: those to evaluate and keep."""
        return {name: weights.detach().clone() for name, weights in self._weights.items()}

    def residual(self, name: str) -> Tensor:
        """Return a copy of what waits in a parameter's residual, in the parameter's shape.

        Raises:
            ValueError: no such parameter.
        """
        for fragment in self._fragments:
            if name in fragment.names:
                return fragment.reducer.feedback.residual(name).view(self._weights[name].shape)
        raise ValueError(f"name must be a trained parameter of the model, got {name!r}. See model.named_parameters().")

    @torch.no_grad()
    def step(self) -> bool:
        """Count an inner step; begin and end the rounds whose turn it is.

        Call it on every worker after each step of the optimizer, also after one that a ``GradScaler`` left out.

        Returns:
            Whether a round has ended, and changed the model's weights.

        Raises:
            RuntimeError: a worker is gone or silent, or parameters are not what they were.
        """
        self.steps += 1
        ended = self._land(self.steps - self._sync_delay) if self._sync_delay else False
        for number, fragment in enumerate(self._fragments):
            if self.steps % self._sync_every == self._turn(number) % self._sync_every:
                self._begin(fragment)
        return ended or (not self._sync_delay and self._land(self.steps))

    @torch.no_grad()
    def finish(self) -> None:
        """End training: end all rounds, run one more of every fragment, and give the model the agreed weights.

        Call it on every worker. What its density leaves in the residuals is not in the weights.
        """
        self._land(self.steps)
        for fragment in self._fragments:
            self._begin(fragment)
        self._land(self.steps)
        for fragment in self._fragments:
            fragment.write()

    def _turn(self, number: int) -> int:
        """Return at which step of ``sync_every`` a fragment begins its round; the last one at the last."""
        return (number + 1) * self._sync_every // len(self._fragments)

    def _begin(self, fragment: Fragment) -> None:
        self._members.require_same()
        fragment.send(self.steps, fragment.differences(), delayed=self._sync_delay > 0, left_out=False)
        self._flying.append(fragment)

    def _land(self, began: int) -> bool:
        """End the rounds that began at a step or before; tells whether there were any."""
        ended = False
        while self._flying and (flight := self._flying[0].flight) is not None and flight.began <= began:
            fragment = self._flying[0]
            fragment.arrive()
            self._flying.popleft()
            agreed = [[self._weights[name] for name in vector.layout.names] for vector in fragment.vectors]
            fragment.land(agreed, self.outer_optimizer, self._mixing)
            self._last, ended = fragment, True
        return ended

    @torch.no_grad()
    def _broadcast(self) -> None:
        source = dist.get_process_group_ranks(self._group)[0]
        for one in (*self._module.parameters(), *self._module.buffers()):
            held = local_part(one)
            whole = held.contiguous()
            dist.broadcast(whole, source, group=self._group)
            held.copy_(whole)


def _require_turns(sync_every: int, fragments: int, sync_delay: int, mixing: float | None, parameters: int) -> None:
    if sync_every < 1:
        raise ValueError(f"sync_every must be at least 1, got {sync_every}. 30 exchanges after every 30 steps.")
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


def _made(outer_optimizer: Any, agreed: Iterable[Parameter]) -> Optimizer:
    if isinstance(outer_optimizer, Optimizer):
        name = type(outer_optimizer).__name__
        raise ValueError(
            f"outer_optimizer must be a function that makes one from parameters, got a {name} of its own. Write "
            f"outer_optimizer=lambda parameters: torch.optim.{name}(parameters, lr=...)."
        )
    if outer_optimizer is None:
        return torch.optim.SGD(agreed, lr=1.0)
    made = outer_optimizer(agreed)
    if not isinstance(made, Optimizer):
        raise ValueError(
            f"outer_optimizer must return a torch.optim.Optimizer, got {type(made).__name__}. Write lambda parameters: "
            "torch.optim.SGD(parameters, lr=0.7, momentum=0.9, nesterov=True), for example."
        )
    return made


def _text_of(parameters: dict[str, Parameter]) -> str:
    """Name a model's parameters in few words that differ where the model does."""
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    numel = sum(parameter.numel() for parameter in parameters.values())
    return f"{len(shapes)} trained parameters of {numel} entries, {zlib.crc32(repr(shapes).encode()):08x}"
