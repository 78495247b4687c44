"""``LocalSteps``: when which fragment takes its turn, and what a user calls."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from gaussiank import __version__, checkpoint
from gaussiank.autotune import parse_policy
from gaussiank.codec import Wire
from gaussiank.collectives import Collective
from gaussiank.comm import (
    all_reduce_bytes,
    await_all,
    executor_of,
    group_timeout_s,
    require_agreement,
    require_backend,
    together,
)
from gaussiank.compression import listed
from gaussiank.compressors import Compressor, parse_compressor
from gaussiank.feedback import require_same_worker
from gaussiank.metrics import RoundTotals, bytes_per_s
from gaussiank.reducer import Settings
from gaussiank.schedule import Constant, Schedule, require_density

from .acceptance import (
    Buffers,
    LocalScope,
    Membership,
    Offload,
    OuterOptimizer,
    StepWatch,
    forget_nonfinite,
    inner_module,
    made_outer,
    require_options,
    require_turns,
    text_of,
    trained_parameters,
    warn_of_ddp,
)
from .fragment import Clock, Flight, Fragment, Round
from .notes import Note, OnOutlier, OutlierRule, digest, median_of, outliers, read
from .state import FORMAT, gathered, joined, parted, warn_of_settings
from .vector import RunningStatistics, broadcast, norm_of, split

_LOG = logging.getLogger(__name__)
_BUCKET_BYTES = 25 << 20  # of DDP


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
        scope: where k is counted: on a whole ``fragment``, or on each parameter (``layer``).
        wire: how entries travel, ``index+values`` or a ``codec.Wire``; None for ``rice+2bit``, and for whole float32
            vectors at density 1. What rounding takes off stays in the residual.
        collective: how workers agree on the mean: a name, ``name:field=value``, or a collective. The default leaves
            half a per cent of room over the last round's payload; what does not fit waits in the residual.
        decay: what a residual is multiplied by in each round, in [0, 1]; at 1 nothing is forgotten, below it is an
            outer momentum (0.95: SparseLoCo's).
        outer_optimizer: makes the optimizer of the agreed weights from its parameters, ``lambda parameters:
            torch.optim.SGD(parameters, lr=0.7, momentum=0.9, nesterov=True)`` for DiLoCo; None for SGD with learning
            rate 1, the mean itself.
        fragments: number of parts of the model that take turns; more make traffic more even.
        sync_delay: inner steps from a fragment's sending to its applying, below ``sync_every``; training does not wait.
        mixing: what becomes of local steps in between: None puts them on top of the new agreed weights, a share in
            [0, 1] keeps ``mixing * local + (1 - mixing) * agreed``.
        buffers: ``average`` the running statistics of batch norm over workers after every ``sync_every`` steps, or
            ``keep`` each worker's own.
        on_outlier: what becomes of a worker whose difference is not finite, or too long: an error on every worker
            (``raise``), nothing of it is used and it begins again at the agreed weights (``leave_out``), or it is
            scaled to the median norm where it is finite (``clip``).
        norm_limit: how many times the median norm over workers a difference may have; None for any. With one, every
            round waits for a message of a few bytes before it begins.
        check_every: rounds after which a hash of the agreed weights is compared; 0 for never.
        residual_dtype: ``torch.bfloat16`` halves what residuals take between rounds, and loses what that rounds off.
        offload: ``cpu`` to keep agreed weights and residuals in the memory of the host between rounds.
        group: process group, or None for the default one.
        timeout_s: seconds after which an exchange fails that a worker did not answer; None for the group's own, the
            only one that an accelerator takes.

    Attributes:
        outer_optimizer: steps the agreed weights; for a scheduler of its learning rate.
        steps: inner steps so far.
        metrics: measurements of the last round that ended; its ``step`` counts the rounds of a fragment.
        ended: the rounds that ended in the last call of ``step`` or ``finish``: their bytes, norms and seconds.
        sent_bytes: bytes that this worker has sent in rounds that have ended.

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
        (63, 1010)
        >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        sync_every: int = 10,
        density: float | Schedule = 1 / 16,
        compressor: str | Compressor = "chunktopk",
        scope: LocalScope = "fragment",
        wire: str | Wire | None = None,
        collective: str | Collective = "allgather:spread=1.005",
        decay: float = 1.0,
        outer_optimizer: OuterOptimizer | None = None,
        fragments: int = 1,
        sync_delay: int = 0,
        mixing: float | None = None,
        buffers: Buffers = "average",
        on_outlier: OnOutlier = "raise",
        norm_limit: float | None = None,
        check_every: int = 10,
        residual_dtype: torch.dtype | None = None,
        offload: Offload | None = None,
        group: dist.ProcessGroup | None = None,
        timeout_s: float | None = None,
    ) -> None:
        optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        module = inner_module(model, group)
        parameters = trained_parameters(module, optimizers)
        device = require_backend(group, {one.device for one in parameters.values()}, timeout_s)
        require_turns(sync_every, fragments, sync_delay, mixing, len(parameters))
        self._rule = OutlierRule(on_outlier, norm_limit)
        require_options(scope, buffers, check_every, residual_dtype, offload)
        settings = Settings(
            density if callable(density) else Constant(require_density(density)),
            parse_compressor(compressor) if isinstance(compressor, str) else compressor,
            scope="layer" if scope == "layer" else "bucket",
            collective=parse_policy(collective) if isinstance(collective, str) else collective,
            wire=wire if isinstance(wire, Wire) else Wire.parse(wire or "rice+2bit"),
            timeout_s=timeout_s,
            decay=decay,
            caller="LocalSteps",
        )
        self._module, self._optimizers, self._group = module, optimizers, group
        self._members = Membership(module, optimizers)
        self._sync_every, self._sync_delay, self._mixing = sync_every, sync_delay, mixing
        self._check_every = check_every
        self.steps = 0
        self._config = {
            "gaussiank version": __version__,
            "sync_every": sync_every,
            **{
                name: value
                for name, value in settings.agreed().items()
                if name not in ("scope", "momentum", "clip_norm")
            },
            "scope": scope,
            "decay": decay,
            "fragments": fragments,
            "sync_delay": sync_delay,
            "mixing": mixing,
            "buffers": buffers,
            "on_outlier": on_outlier,
            "norm_limit": norm_limit,
            "check_every": check_every,
            "model": text_of(parameters),
        }
        await_all(group, what="gaussiank.LocalSteps")
        require_agreement(self._config, group)
        broadcast(module, group)
        self._executor = executor_of(group, group_timeout_s(group) if timeout_s is None else timeout_s, device)
        whole = wire is None or settings.wire.exact
        home = torch.device(offload) if offload else None
        self._fragments = [
            Fragment(part, settings, group=group, home=home, resting=residual_dtype, whole=whole)
            for part in split(parameters, fragments)
        ]
        self._weights = {
            name: Parameter(view, requires_grad=False)
            for fragment in self._fragments
            for vector in fragment.vectors
            for name, view in zip(vector.layout.names, vector.views(vector.agreed), strict=True)
        }
        self.outer_optimizer = made_outer(outer_optimizer, self._weights.values())
        require_agreement({"outer_optimizer": self.outer_optimizer}, group)
        self._statistics = RunningStatistics(module) if buffers == "average" else None
        self._flying: deque[Fragment] = deque()
        self.metrics = self._fragments[-1].metrics
        self.sent_bytes = 0
        self.ended: tuple[Round, ...] = ()
        differences = [fragment.differences for fragment in self._fragments]
        self._watch = StepWatch(optimizers[0], sync_every, differences, partial(warn_of_ddp, module, group))
        vectors = [vector.agreed for fragment in self._fragments for vector in fragment.vectors]
        world_size, size = dist.get_world_size(group), sum(one.nbytes for one in vectors)
        dense_bytes = sum(all_reduce_bytes(one, world_size) for one in vectors)
        self._totals = RoundTotals(dense_bytes, -(-size // _BUCKET_BYTES), world_size)
        self._text = {
            **{name: value for name, value in self._config.items() if name not in ("gaussiank version", "model")},
            "outer_optimizer": outer_optimizer and type(self.outer_optimizer).__name__,
            "residual_dtype": residual_dtype,
            "offload": offload,
            "parameters": len(parameters),
            "numel": f"{sum(one.numel() for one in vectors):,}",
        }
        _LOG.info("%r", self)

    def __repr__(self) -> str:
        settings = {name: str(value) for name, value in self._text.items() if value is not None}
        return f"LocalSteps({listed(settings)}, steps={self.steps})"

    def summary(self, mbit: float | None = None, latency_us: float = 50.0) -> str:
        """Tell in a sentence what this process has sent, how long training stood still, and what dense had taken.

        The last is a prediction by the link's rate, of a dense exchange at every step that hides behind backward.

        Args:
            mbit: megabits a second in one direction of the link, or None to leave dense out.
            latency_us: microseconds of a message.

        Raises:
            ValueError: a rate that is not above 0.

        Example:
            ``print(local.summary(mbit=100))``
        """
        if mbit is None:
            return self._totals.text()
        return self._totals.text(self._totals.dense_ratio(bytes_per_s(mbit), latency_us * 1e-6))

    def agreed(self) -> dict[str, Tensor]:
        """Return copies of the weights that all workers agreed on last, by parameter: those to evaluate and keep."""
        return {name: weights.detach().clone() for name, weights in self._weights.items()}

    @contextlib.contextmanager
    def at_agreed(self) -> Iterator[None]:
        """Let the model have the agreed weights for a while: to evaluate what is the same on every worker.

        Example:
            >>> import tempfile
            >>> store = f"file://{tempfile.mkdtemp()}/store"
            >>> dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
            >>> model = torch.nn.Linear(1, 1, bias=False)
            >>> _ = torch.nn.init.ones_(model.weight)
            >>> local = LocalSteps(model, torch.optim.SGD(model.parameters()))
            >>> _ = torch.nn.init.zeros_(model.weight)
            >>> with local.at_agreed():
            ...     model.weight.item()
            1.0
            >>> model.weight.item()
            0.0
            >>> dist.destroy_process_group()
        """
        vectors = [vector for fragment in self._fragments for vector in fragment.vectors]
        with torch.no_grad():
            own = [vector.local() for vector in vectors]
            for vector in vectors:
                vector.write()
        try:
            yield
        finally:
            with torch.no_grad():
                for vector, weights in zip(vectors, own, strict=True):
                    vector.write(weights)

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
        self._watch.counted()
        self.steps, self.ended = self.steps + 1, ()
        ended = self._land(self.steps - self._sync_delay) if self._sync_delay else False
        for number, fragment in enumerate(self._fragments):
            if self.steps % self._sync_every == self._turn(number) % self._sync_every:
                self._begin(fragment)
        ended = ended or (not self._sync_delay and self._land(self.steps))
        self._count(1)
        return ended

    def _count(self, steps: int) -> None:
        self._totals.count(steps, [(one.sent_bytes, one.waited_s) for one in self.ended])

    @torch.no_grad()
    def finish(self, *, density: float | None = None) -> None:
        """End training: end all rounds, run one more of every fragment, and give the model the agreed weights.

        Call it on every worker.

        Args:
            density: 1 for a last round that sends everything, residuals too, in full precision: nothing is left over,
                for the price of one dense all-reduce. None keeps the density of the others, whose residuals are not in
                the weights.

        Raises:
            ValueError: another density.
            RuntimeError: the optimizer has taken more steps than a round has since ``step`` was called last.
        """
        if density not in (None, 1):
            raise ValueError(f"density must be 1 or None in finish, got {density}. 1 leaves nothing in the residuals.")
        self._watch.require_counted()
        self.ended = ()
        self._land(self.steps)
        for fragment in self._fragments:
            fragment.reducer.whole = density is not None
            self._begin(fragment)
        self._land(self.steps)
        for fragment in self._fragments:
            fragment.reducer.whole = False
            fragment.rewind()
        self._count(0)

    def state_dict(self, *, inner: bool = False) -> dict[str, Any]:
        """Return this worker's state: agreed and local weights, residuals, outer optimizer, step, rounds under way.

        Waits for the messages of rounds under way, and ends none: a resumed run ends them at the same step. Every
        worker must save its own, with its inner optimizers: ``save`` does. Tensors are copies.

        Args:
            inner: with the states of the inner optimizers, which are not copied, and the model's buffers.
        """
        for fragment in self._flying:
            self._arrive(fragment)
        mean = None if self._statistics is None else self._statistics.mean
        state: dict[str, Any] = {
            "format": FORMAT,
            "rank": dist.get_rank(self._group),
            "world_size": dist.get_world_size(self._group),
            "step": self.steps,
            **gathered(self._fragments, self._text),
            "outer_optimizer": copy.deepcopy(self.outer_optimizer.state_dict()),
            "statistics": None if mean is None else mean.clone(),
        }
        if inner:
            state["optimizers"] = [one.state_dict() for one in self._optimizers]
            state["buffers"] = {name: buffer.clone() for name, buffer in self._module.named_buffers()}
        return state

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on where ``state_dict`` was taken, local weights included; nothing changes where it does not fit on one.

        Call it on every worker. A worker that joins the others passes None: it takes their agreed weights, outer
        optimizer and step, and an empty residual; all begin again at the agreed weights, and nothing is lost. For a
        state of fewer or more workers where all have one, see ``gaussiank.reshard``.

        Raises:
            ValueError: another format, rank, number of workers or model, other agreed weights than on other workers, or
                other fragments while rounds are under way; the same on all workers.
            RuntimeError: a worker does not call it.
        """
        what = "local.load_state_dict"
        saved = together(lambda: None if state is None else int(state["world_size"]), self._group, what=what)
        if None in saved:
            state = joined(state, saved, self._group)

        def fitting() -> tuple[int, int]:
            assert state is not None  # each has one now
            self._require_fitting(state)
            return int(state["step"]), digest([state["agreed"][name] for name in self._weights])

        found = together(fitting, self._group, what=what)
        checkpoint.require_one(found, "step, and hash of the agreed weights,")
        assert state is not None  # each has one now
        self._load(state)

    def save(self, folder: str | Path) -> None:
        """Write everything that this worker needs to go on, to the bit: its state, inner optimizers and buffers.

        Call it on every worker, between two steps: all of them are saved, or none. Save the model beside it only for
        others to use; ``agreed`` returns what to evaluate.

        Args:
            folder: created if need be; one that every worker sees. What was saved there before is replaced, whole at
                any moment; other files stay.

        Raises:
            OSError: a worker could not write; the same on all, and nothing has changed.
            ValueError: parameters are sharded (FSDP2).
            RuntimeError: a worker does not call it.

        Example:
            >>> import tempfile
            >>> folder = tempfile.mkdtemp()
            >>> dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
            >>> model = torch.nn.Linear(100, 10)
            >>> local = LocalSteps(model, torch.optim.AdamW(model.parameters()))
            >>> changed = local.step()
            >>> local.save(f"{folder}/last")
            >>> local.load(f"{folder}/last")
            >>> local.steps
            1
            >>> dist.destroy_process_group()
        """
        if any(hasattr(one, "to_local") for one in self._module.parameters()):
            raise ValueError(
                "model must have plain parameters for local.save, got shards of fully_shard. Save "
                "checkpoint.shards(local, rank) with torch.distributed.checkpoint, and the optimizer under a name "
                "for each replica: f'optimizer{replica}'."
            )
        checkpoint.save(self.state_dict(inner=True), folder, self._group, name="local")

    def load(self, folder: str | Path) -> None:
        """Go on where ``save`` was called, on every worker or on none.

        Saved by another number of workers, all begin again at the agreed weights, and what each had learnt since the
        last round is shared out with the residuals: none of it is lost. A new worker takes over an old one's optimizer.

        Args:
            folder: given to ``save``.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: a file is missing or damaged, to the bit, or of another model; the same on all workers, and
                nothing has changed on any.
            RuntimeError: a worker does not call it.
        """
        self._load(checkpoint.load(folder, self._require_fitting, self._group, name="local"))

    def _require_fitting(self, state: Mapping[str, Any]) -> None:
        try:
            require_same_worker(
                state,
                number=FORMAT,
                world_size=dist.get_world_size(self._group),
                rank=dist.get_rank(self._group),
            )
            for fragment, part in zip(self._fragments, parted(state, self._fragments, self._sync_every), strict=True):
                fragment.require_fitting(part)
            whole = isinstance(state["step"], int) and "outer_optimizer" in state and "statistics" in state
            whole = whole and len(state.get("optimizers", self._optimizers)) == len(self._optimizers)
            for name, saved in state.get("buffers", {}).items():
                whole = whole and self._module.get_buffer(name).shape == saved.shape
        except (AttributeError, IndexError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ValueError(
                "state must be what LocalSteps.state_dict returned, got one that lacks something. Load the state as it "
                "was saved."
            )

    @torch.no_grad()
    def _load(self, state: Mapping[str, Any]) -> None:
        warn_of_settings(state, self._text, self._group)
        self.outer_optimizer.load_state_dict(state["outer_optimizer"])
        for fragment, part in zip(self._fragments, parted(state, self._fragments, self._sync_every), strict=True):
            fragment.load_state_dict(part)
        flying = [fragment for fragment in self._fragments if fragment.flight is not None]
        # rounds end in the order in which they began; those that began together in that of their fragments
        self._flying = deque(sorted(flying, key=lambda one: one.flight.began if one.flight else 0))
        self.steps = state["step"]
        for optimizer, saved in zip(self._optimizers, state.get("optimizers", ()), strict=False):
            optimizer.load_state_dict(saved)
        for name, saved in state.get("buffers", {}).items():
            self._module.get_buffer(name).copy_(saved)
        if self._statistics is not None:
            self._statistics.mean = None if state["statistics"] is None else state["statistics"].clone()
        self._watch.counted()

    def _turn(self, number: int) -> int:
        """Return at which step of ``sync_every`` a fragment begins its round; the last one at the last."""
        return (number + 1) * self._sync_every // len(self._fragments)

    def _begin(self, fragment: Fragment) -> None:
        """Begin a fragment's round: tell the others of it, judge the difference, and send."""
        self._members.require_same()
        started = time.perf_counter()
        number, differences = self._fragments.index(fragment), fragment.differences()
        norm = norm_of(differences)
        checks = self._check_every and fragment.reducer.exchanges % self._check_every == 0
        note = Note(self.steps, number, norm, fragment.digest() if checks else 0)
        told = note.send(self._executor, fragment.vectors[0].device)
        rule, left_out = self._rule, not math.isfinite(norm)
        if left_out and rule.on_outlier != "raise":
            self._rewind()
        if rule.norm_limit is not None:
            notes = read(told)
            rule.judge(notes, fragment.names[0], dist.get_rank(self._group))
            if dist.get_rank(self._group) in outliers([one.norm for one in notes], rule.norm_limit):
                left_out = left_out or rule.on_outlier == "leave_out"
                if left_out:
                    fragment.rewind()
                else:
                    for difference in differences:
                        difference.mul_(median_of([one.norm for one in notes]) / norm)
        carrying = self._sync_delay > 0 and self._mixing is None
        unread = None if rule.norm_limit else told
        fragment.send(self.steps, differences, unread, carrying=carrying, left_out=left_out)
        if self._statistics is not None and number == len(self._fragments) - 1:
            self._statistics.send(self._executor, self.steps, left_out=left_out)
        self._flying.append(fragment)
        if fragment.flight is not None:
            fragment.flight.clock = Clock(started, norm, time.perf_counter() - started)

    def _rewind(self) -> None:
        """Begin again at the agreed weights, and forget what optimizers remember that is not finite."""
        for fragment in self._fragments:
            fragment.rewind()
        for optimizer in self._optimizers:
            forget_nonfinite(optimizer)

    def _arrive(self, fragment: Fragment) -> None:
        """Wait until all of a round is there: what the others told, the means, and the statistics."""
        assert fragment.flight is not None  # under way
        if fragment.flight.note is not None:
            notes, fragment.flight.note = read(fragment.flight.note), None
            try:
                self._rule.judge(notes, fragment.names[0], dist.get_rank(self._group))
            except RuntimeError:
                self._flying.remove(fragment)
                fragment.drop()
                raise
        fragment.arrive()
        if self._statistics is not None and fragment is self._fragments[-1]:
            self._statistics.arrive()

    def _land(self, began: int) -> bool:
        """End the rounds that began at a step or before; tells whether there were any."""
        ended = False
        while self._flying and (flight := self._flying[0].flight) is not None and flight.began <= began:
            fragment, started = self._flying[0], time.perf_counter()
            self._arrive(fragment)
            self._flying.popleft()
            agreed = [[self._weights[name] for name in vector.layout.names] for vector in fragment.vectors]
            fragment.land(agreed, self.outer_optimizer, self._mixing or 0.0)
            if self._statistics is not None and fragment is self._fragments[-1]:
                self._statistics.land()
            self.metrics, ended = fragment.metrics, True
            self.sent_bytes += self.metrics.sent_bytes
            self.ended += (self._round(fragment, flight, time.perf_counter() - started),)
        return ended

    def _round(self, fragment: Fragment, flight: Flight, landed_s: float) -> Round:
        clock, metrics = flight.clock, fragment.metrics
        took = (math.nan,) * 3
        if clock is not None:
            took = (clock.norm, time.perf_counter() - clock.started, clock.waited_s + landed_s)
        return Round(self._fragments.index(fragment), flight.began, metrics.sent_bytes, metrics.kept, *took)

    def residual_norm(self) -> float:
        """Return the norm of all that waits in this worker's residuals: one pass over them."""
        return norm_of(
            [fragment.reducer.feedback.residual(name) for fragment in self._fragments for name in fragment.names]
        )
