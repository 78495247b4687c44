"""What was not sent stays here: one residual for each parameter, taken from, kept, committed, saved.

A step is a transaction. ``take`` writes the new residuals beside the old ones; ``settle`` makes them the real ones when
every mean of the step arrived, was finite, and was used by an optimizer, as far as torch shows that, and
forgets them otherwise. So an overflow under mixed precision, a step that raised or that the loop skipped, or a dead
peer leaves each residual as it was. A mean that no optimizer has used yet and that still lies in ``grad`` stays open:
the next backward, which adds to it, goes on from there. The price is a second buffer of the residual's size: what would
put one buffer back is the gradient, which the mean has overwritten. Both buffers in 16 bits take what one does in 32.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.layout import Layout, Piece
from gaussiank.momentum import MomentumCorrection
from gaussiank.ops import RESIDUAL_DTYPES
from gaussiank.sparse import SparseGradient

from .optimizers import OptimizerUse
from .state import FORMAT, require_fitting


@dataclass(eq=False)
class ResidualBuffers:
    """Residual and velocity of one layout, each with the buffer that an uncommitted step writes.

    A step reads ``residual`` and writes ``next_residual``, in one pass over memory. ``commit`` swaps the two and copies
    nothing; ``forget`` swaps nothing, and the next step writes over what was written. A backward that goes on from an
    open step reads ``next_residual`` and writes a third buffer, made when it is first needed.

    Args:
        layout: which parameters.
        residual: ``[numel]`` committed residual.
        velocity: ``[numel]`` committed velocity, or None without momentum correction.
        next_residual: ``[numel]`` what a step writes.
        next_velocity: ``[numel]`` likewise.
        clean: whether the residual is known to be all zeros.
        open: whether ``next_residual`` holds a step that is neither committed nor forgotten.
        turn: what the next rounding to 16 bits draws by.
        narrow: whether the residual has 16 bits.
    """

    layout: Layout
    residual: Tensor
    velocity: Tensor | None
    next_residual: Tensor
    next_velocity: Tensor | None
    clean: bool = True
    open: bool = False
    turn: int = 0
    narrow: bool = False
    _spare: tuple[Tensor, Tensor | None] | None = None

    @classmethod
    def of_zeros(
        cls, layout: Layout, dtype: torch.dtype, device: torch.device, *, velocity: torch.dtype | None
    ) -> ResidualBuffers:
        """Make the part of a layout without any residual yet; with a velocity of another dtype if one is given."""
        zeros = partial(ops.residual_buffer, layout.numel, device=device)
        pair = None if velocity is None else (zeros(velocity), zeros(velocity))
        return cls(
            layout, zeros(dtype), pair and pair[0], zeros(dtype), pair and pair[1], narrow=dtype is torch.bfloat16
        )

    def keep(self, accumulated: Tensor) -> None:
        """Write what is left of an accumulated vector to ``next_residual``, in 16 bits."""
        ops.round_randomly(accumulated, self.next_residual, self._turned())

    def add(self, rest: SparseGradient | Tensor) -> None:
        """Add to ``next_residual``."""
        if isinstance(rest, Tensor):
            ops.add_randomly(self.next_residual, rest, self._turned()) if self.narrow else self.next_residual.add_(rest)
        elif self.narrow:
            held = self.next_residual[rest.indices]
            ops.add_randomly(held, rest.values, self._turned())
            self.next_residual[rest.indices] = held
        else:
            self.next_residual.index_add_(0, rest.indices, rest.values)

    def _turned(self) -> int:
        self.turn += 1
        return self.turn

    def begin(self) -> tuple[Tensor, Tensor | None]:
        """Open a step; returns the residual and velocity that it starts from: an open step's, or the committed ones."""
        if not self.open:
            self.open = True
            if self.next_residual.numel() != self.residual.numel():  # after a rest
                self.next_residual = _like(self.residual)
                self.next_velocity = None if self.velocity is None else _like(self.velocity)
            return self.residual, self.velocity
        before = self.next_residual, self.next_velocity
        if self._spare is None:
            self._spare = _like(before[0]), None if before[1] is None else _like(before[1])
        (self.next_residual, self.next_velocity), self._spare = self._spare, before
        return before

    def commit(self) -> None:
        """End the open step: what it wrote becomes the residual and the velocity."""
        self.residual, self.next_residual = self.next_residual, self.residual
        self.velocity, self.next_velocity = self.next_velocity, self.velocity
        self.open = False

    def rest(self, dtype: torch.dtype | None, device: torch.device | None) -> None:
        """Hold nothing but residual and velocity until the next step, in another dtype or elsewhere if one is given."""
        if self.open:
            return
        self.residual = self.residual.to(device or self.residual.device, dtype or self.residual.dtype)
        self.next_residual = self.residual.new_empty(0)
        self.next_velocity = None if self.velocity is None else self.velocity.new_empty(0)
        self._spare = None

    def forget(self) -> None:
        """End the open step: residual and velocity stay as they were before it."""
        self.open = self.clean = False


def _like(vector: Tensor) -> Tensor:
    return ops.residual_buffer(vector.numel(), vector.dtype, vector.device)


Select = Callable[[Tensor], SparseGradient]
"""Chooses from an accumulated vector."""
Fused = Callable[[Tensor, Tensor, Tensor], SparseGradient]
"""Writes the sum of the first two vectors to the third, chooses from it, and removes there what it chose."""


class Follower(Protocol):
    """What is committed and forgotten with the residuals of a layout."""

    def commit(self, layout: Layout) -> None:
        """Keep what the step has written."""

    def forget(self, layout: Layout) -> None:
        """Stay as before the step."""


class _Verdict:
    """Whether a mean is finite on a CUDA device: copied to the host at once, so that no later work is waited for."""

    def __init__(self, finite: Tensor) -> None:
        self._finite = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=True)
        self._finite.copy_(finite, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()

    def __bool__(self) -> bool:
        self._copied.synchronize()
        return bool(self._finite)


@dataclass
class _Step:
    """A backward: which parts it touches, and whether each mean that came back was finite.

    Args:
        parts: in the order in which they were taken from.
        verdicts: one for each mean.
        sealed: whether all of it is under way.
        going_on: parts open from an earlier backward whose mean was still in ``grad`` when this one added to it.
    """

    parts: list[ResidualBuffers] = field(default_factory=list)
    verdicts: list[_Verdict | Tensor] = field(default_factory=list)
    sealed: bool = False
    going_on: list[ResidualBuffers] = field(default_factory=list)


class ErrorFeedback:
    """Keep what was not sent, parameter by parameter, and add it to the next gradient.

    ``residual_after + taken == residual_before + grad`` holds bit for bit (with momentum correction, for the velocity
    in the gradient's place; with a decay, for ``decay * residual_before``). Residuals are float32 (float64 for float64
    gradients), lie in bucket order, and move when the order changes.

    Attributes:
        turn: number of the step, of this worker; what rounding to 16 bits draws by.

    Args:
        parameters: name -> shape of every parameter that may come, or its numel.
        momentum: momentum correction, or None.
        world_size: number of workers; scales the clipping norm.
        use: tells whether optimizers have used the means; without it every mean counts as used.
        dtype: ``torch.bfloat16`` for residuals of 16 bits, each rounded at random in every step so that nothing is lost
            on average; None for float32, or float64 for float64 gradients, of which nothing is lost.
        decay: what a residual is multiplied by, in float32, before a gradient joins it; below 1 it forgets.
        follower: told of every layout whose step is committed or forgotten, or None.

    Example:
        >>> feedback = ErrorFeedback({"w": 4})
        >>> top = lambda u: SparseGradient.pick(u, ops.select_topk(u, 1))
        >>> grad = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> sent = feedback.take(Layout(("w",), (4,)), grad, top)
        >>> feedback.seal(); feedback.record_finite(torch.tensor(True)); feedback.settle()
        True
        >>> sent.indices.tolist(), feedback.residual("w").tolist()
        ([0], [0.0, 3.0, 2.0, 1.0])
    """

    def __init__(
        self,
        parameters: Mapping[str, int | Sequence[int]],
        *,
        momentum: MomentumCorrection | None = None,
        world_size: int = 1,
        use: OptimizerUse | None = None,
        dtype: torch.dtype | None = None,
        decay: float = 1.0,
        follower: Follower | None = None,
    ) -> None:
        self._shapes = {
            name: (given,) if isinstance(given, int) else tuple(given) for name, given in parameters.items()
        }
        self._parameters = {name: math.prod(shape) for name, shape in self._shapes.items()}
        self._momentum, self._world_size, self._use = momentum, world_size, use
        self._dtype, self._decay = dtype, decay
        self.turn = 0
        self._follower = follower
        self._open_parts: list[ResidualBuffers] = []
        self._parts: dict[Layout, ResidualBuffers] = {}
        self._places: dict[str, tuple[ResidualBuffers, Piece]] = {}
        self._step = _Step()

    def __repr__(self) -> str:
        settings = f"momentum={self._momentum}, decay={self._decay}, world_size={self._world_size}"
        return f"ErrorFeedback({len(self._parameters)} parameters, numel={sum(self._parameters.values())}, {settings})"

    # ------------------------------------------------------------------ one step: take, record_finite, seal, settle

    def take(
        self, layout: Layout, grad: Tensor, select: Select, *, held: Iterable[slice] = (), fused: Fused | None = None
    ) -> SparseGradient:
        """Add the residual to ``grad``, let ``select`` choose, and keep the rest.

        Args:
            layout: what lies in ``grad``.
            grad: ``[numel]`` local gradient. Not modified, unless residuals have 16 bits: then used for the sum.
            select: chooses from the accumulated vector; what it returns counts as sent.
            held: places of parameters that got no gradient: nothing of them is sent, their residual stays.
            fused: does all three at once; used instead of ``select`` where nothing else has to happen between adding
                and choosing.

        Returns:
            What to send.

        Raises:
            ValueError: ``grad`` is no flat vector or does not fit the layout, or the layout names an unknown parameter.
        """
        part, residual, velocity = self._open(layout, grad)
        addend = grad if velocity is None else self._advance(part, velocity, grad)
        held = tuple(held)
        if fused and not held and not part.narrow:
            sparse = fused(addend, residual, part.next_residual)
        else:
            accumulated = self._accumulate(part, residual, addend, grad)
            for place in held:
                accumulated[place] = 0
            sparse = select(accumulated)
            accumulated[sparse.indices] = 0
            if part.narrow:
                part.keep(accumulated)
        if part.next_velocity is not None and self._momentum is not None and self._momentum.masking:
            part.next_velocity[sparse.indices] = 0
        if held:
            self._hold(part, residual, velocity, held)
        part.clean = False
        return sparse

    @property
    def empty(self) -> bool:
        """Whether nothing was ever taken from these residuals, so that all are zero, and no velocity is kept."""
        return self._momentum is None and self._follower is None and not self._places

    def take_all(self, layout: Layout, grad: Tensor, *, held: Iterable[slice] = ()) -> bool:
        """Add the residual to ``grad`` in place and send all of it; the rounding to grad's dtype stays.

        Returns:
            Whether a verdict is due (``record_finite``): not when there was nothing to add.

        Raises:
            ValueError: as ``take``.
        """
        known = self._parts.get(layout)
        if known is not None and known.open:
            self._go_on_or_forget(known)
        if (self._momentum, self._follower) == (None, None) and (
            known.clean if known else not any(name in self._places for name in layout.names)
        ):
            return False
        part, residual, velocity = self._open(layout, grad)
        addend, held = grad if velocity is None else self._advance(part, velocity, grad), tuple(held)
        kept = [grad[place].clone() for place in held]
        accumulated = self._accumulate(part, residual, addend, grad)
        for place, one in zip(held, kept, strict=True):
            accumulated[place] = one
        if accumulated is grad:
            part.next_residual.zero_()
        else:
            grad.copy_(accumulated)
            accumulated.sub_(grad)
            if part.narrow:
                part.keep(accumulated)
        self._hold(part, residual, velocity, held)
        part.clean = not held and grad.dtype == accumulated.dtype
        return True

    def put_back(self, layout: Layout, rest: SparseGradient | Tensor) -> None:
        """Put back what was taken but did not enter the mean: rejected entries, or a ``[numel]`` rounding error."""
        self._parts[layout].add(rest)

    def written(self, layout: Layout) -> Tensor:
        """Return what the open step has written: the residual that ``settle`` may commit."""
        return self._parts[layout].next_residual

    def take_more(self, layout: Layout, indices: Tensor) -> Tensor:
        """Take more after ``take``: what still lies at int32 ``indices`` without repeats; it counts as sent."""
        part = self._parts[layout]
        values = part.next_residual[indices].float() if part.narrow else part.next_residual[indices]
        part.next_residual[indices] = 0
        if part.next_velocity is not None and self._momentum is not None and self._momentum.masking:
            part.next_velocity[indices] = 0
        return values

    def record_finite(self, finite: Tensor) -> None:
        """Note for one part of the step that its mean arrived; ``finite`` is a 0-d bool tensor, read in ``settle``."""
        self._step.verdicts.append(_Verdict(finite) if finite.is_cuda else finite)

    def seal(self) -> None:
        """Say that the last part of the step has been taken."""
        self._step.sealed = True

    def settle(self) -> bool:
        """End the step: commit what is whole, finite and used, forget what is not, leave open what may be used yet.

        Returns:
            Whether all of it was committed.
        """
        step, self._step = self._step, _Step()
        # 1. the last backward is whole where all of it is under way, and each mean has arrived and is finite
        whole = step.sealed and len(step.verdicts) == len(step.parts) and all(map(bool, step.verdicts))
        if not whole:
            for part in step.parts:
                self._end(part, commit=False)
        # 2. what is open, of this backward or of earlier ones, goes by its optimizer: None where it may step yet
        for part in self._open_parts:
            used = not part.open or self._use is None or self._use.of(part.layout.names)
            if used is not None and part.open:
                self._end(part, commit=used)
                whole = whole and used
        self._open_parts = [part for part in self._open_parts if part.open]
        return whole and not self._open_parts

    def discard(self) -> None:
        """Forget the last backward, and those that it went on from: all that is not committed."""
        self._step = _Step()
        for part in self._open_parts:
            self._end(part, commit=False)
        self._open_parts = []

    def _end(self, part: ResidualBuffers, *, commit: bool) -> None:
        part.commit() if commit else part.forget()
        if self._follower is not None:
            (self._follower.commit if commit else self._follower.forget)(part.layout)

    def rest(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> None:
        """Give back, after ``settle``, the buffers that only a step needs, until the next one.

        Args:
            dtype: what residuals are rounded to until then, None for their own. What rounding takes off is lost.
            device: where they lie until then, None for where they are.
        """
        for part in {id(part): part for part, _ in self._places.values()}.values():
            part.rest(dtype, device)

    def rescale(self, factor: float) -> None:
        """Multiply every residual and velocity by ``factor``, between two steps: their unit has changed.

        Exact when ``factor`` is a power of two, as a ``GradScaler`` has by default, within float32's range.
        """
        for part in {id(part): part for part, _ in self._places.values()}.values():
            for vector in (
                part.residual,
                part.velocity,
                *((part.next_residual, part.next_velocity) if part.open else ()),
            ):
                if vector is not None:
                    vector.mul_(factor)

    # ------------------------------------------------------------------ old names

    def keep(self, layout: Layout, rest: SparseGradient | Tensor) -> None:
        """``put_back``, by its old name."""
        _tell_renamed("keep", "put_back")
        self.put_back(layout, rest)

    def draw(self, layout: Layout, indices: Tensor) -> Tensor:
        """``take_more``, by its old name."""
        _tell_renamed("draw", "take_more")
        return self.take_more(layout, indices)

    def judge(self, finite: Tensor) -> None:
        """``record_finite``, by its old name."""
        _tell_renamed("judge", "record_finite")
        self.record_finite(finite)

    # ------------------------------------------------------------------ reading and saving

    def residual(self, name: str) -> Tensor:
        """Return a copy of a parameter's committed residual, in the parameter's shape; zeros when nothing was kept yet.

        Raises:
            ValueError: no such parameter.
        """
        if name not in self._parameters:
            raise ValueError(f"name must be a parameter of the model, got {name!r}. See model.named_parameters().")
        if name not in self._places:
            return torch.zeros(self._shapes[name], dtype=torch.float32, device="cpu")
        part, piece = self._places[name]
        return piece.of(part.residual, self._shapes[name]).clone(memory_format=torch.contiguous_format)

    def residuals(self, wanted: Layout | Sequence[str]) -> Tensor:
        """Return a copy of the committed residuals of some parameters, end to end: ``[sum of numels]``.

        Args:
            wanted: a layout, for the order that it says, or names, for that of the parameters' indices.

        Example:
            >>> ErrorFeedback({"w": 2, "b": 1}).residuals(["b", "w"]).tolist()
            [0.0, 0.0, 0.0]
        """
        if not isinstance(wanted, Layout):
            return torch.cat([self.residual(name).flatten() for name in wanted])
        held = [self.residual(name) for name in wanted.names]
        copy = torch.empty(wanted.numel, dtype=held[0].dtype, device=held[0].device)
        for residual, (_, piece) in zip(held, wanted.pieces(), strict=True):
            piece.of(copy, residual.shape).copy_(residual)
        return copy

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all residuals and velocities, by parameter; an unfinished step is not in them.

        Each is flat, in the order of the parameter's indices, however the parameter lies in memory.
        """
        places = {name: self._places[name] for name in self._parameters if name in self._places}

        def copy(name: str, vector: Tensor, piece: Piece) -> Tensor:
            return piece.of(vector, self._shapes[name]).clone(memory_format=torch.contiguous_format).flatten()

        return {
            "format": FORMAT,
            "parameters": dict(self._parameters),
            "residual": {name: copy(name, part.residual, piece) for name, (part, piece) in places.items()},
            "velocity": {
                name: copy(name, part.velocity, piece)
                for name, (part, piece) in places.items()
                if part.velocity is not None
            },
        }

    def require_fitting(self, state: Mapping[str, Any]) -> None:
        """Raise what ``load_state_dict`` would, and change nothing.

        Raises:
            ValueError: another format, another model, or other momentum settings.
        """
        require_fitting(state, self._parameters, moving=self._momentum is not None)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all residuals and velocities by saved ones; nothing changes when they do not fit.

        Raises:
            ValueError: another format, another model, or other momentum settings.
        """
        self.require_fitting(state)
        residual, velocity = state["residual"], state["velocity"]
        self._parts, self._places, self._step, self._open_parts = {}, {}, _Step(), []
        for name, saved in residual.items():
            part = self._new_part(Layout((name,), (saved.numel(),)), saved)
            part.residual.copy_(saved)
            if part.velocity is not None:
                part.velocity.copy_(velocity[name])
            part.clean = False

    # ------------------------------------------------------------------ inside

    def _open(self, layout: Layout, grad: Tensor) -> tuple[ResidualBuffers, Tensor, Tensor | None]:
        """Open the part of a gradient; returns it, and the residual and velocity that the step starts from."""
        ops.require_vector(grad, "grad")
        if grad.numel() != layout.numel:
            raise ValueError(f"grad must fit its layout of {layout.numel} entries, got {grad.numel()}. Pass all of it.")
        part, dtype = self._parts.get(layout), self._dtype or RESIDUAL_DTYPES[grad.dtype]
        if part is None or part.residual.device != grad.device or part.residual.dtype != dtype:
            part = self._move_in(layout, grad)
        elif part.open:
            self._go_on_or_forget(part)
        if self._use is not None:
            self._use.exchanged(layout.names)
        if not part.open:
            self._open_parts.append(part)
        self._step.parts.append(part)
        part.turn = zlib.crc32(f"{layout.names[0]} {self.turn}".encode())
        residual, velocity = part.begin()
        # a copy, so that a step which is forgotten has decayed nothing; of 16 bits, the sum multiplies by it
        return part, residual if self._decay == 1 or part.narrow else residual * self._decay, velocity

    def _accumulate(self, part: ResidualBuffers, residual: Tensor, addend: Tensor, grad: Tensor) -> Tensor:
        """Return the sum of residual and addend: in ``next_residual``, or in ``grad`` where that has 16 bits."""
        if part.narrow:
            total = grad.to(RESIDUAL_DTYPES[grad.dtype])  # the gradient itself, where that has 32
            return ops.add_narrow(total if addend is grad else total.copy_(addend), residual, self._decay)
        return ops.accumulate(residual, addend, out=part.next_residual)

    def _go_on_or_forget(self, part: ResidualBuffers) -> None:
        """Decide on an open part, which no optimizer has used: keep it so only if its mean was still in ``grad``."""
        if part not in self._step.going_on and self._use is not None:
            if self._use.still_in_grad(part.layout.names):
                self._require_one_backward(part.layout)
                self._step.going_on.append(part)
            else:
                self._end(part, commit=False)
                self._open_parts.remove(part)

    def _require_one_backward(self, layout: Layout) -> None:
        """Raise where a gradient holds an earlier mean that a velocity, or a preconditioner, would take in again."""
        if self._follower is not None:
            raise RuntimeError(
                "precondition must have one synchronized backward for each step of the optimizer, got a second one for "
                f"{layout.names[0]}, whose grad still holds the mean of the first. Put all but the last in "
                "model.no_sync(), under FSDP2 behind set_requires_gradient_sync(False), or zero the gradient before."
            )
        if self._momentum is not None and self._momentum.momentum > 0:
            raise RuntimeError(
                "momentum correction must have one synchronized backward for each step of the optimizer, got a second "
                f"one for {layout.names[0]}, whose grad still holds the mean of the first. Put all but the last in "
                "model.no_sync(), or zero the gradient before."
            )

    def _advance(self, part: ResidualBuffers, velocity: Tensor, grad: Tensor) -> Tensor:
        """Add the gradient to the velocity; returns what the residual grows by."""
        assert self._momentum is not None  # or there were no velocity
        assert part.next_velocity is not None
        return self._momentum.advance(velocity, grad, part.next_velocity, part.layout, self._world_size)

    def _hold(self, part: ResidualBuffers, residual: Tensor, velocity: Tensor | None, held: Iterable[slice]) -> None:
        for place in held:
            part.next_residual[place] = residual[place]
            if part.next_velocity is not None and velocity is not None:
                part.next_velocity[place] = velocity[place]

    def _new_part(self, layout: Layout, like: Tensor) -> ResidualBuffers:
        own = RESIDUAL_DTYPES[like.dtype]
        velocity = None if self._momentum is None else own
        part = ResidualBuffers.of_zeros(layout, self._dtype or own, like.device, velocity=velocity)
        self._parts[layout] = part
        self._places.update({name: (part, piece) for name, piece in layout.pieces()})
        return part

    def _move_in(self, layout: Layout, grad: Tensor) -> ResidualBuffers:
        """Make the part that a gradient needs, with the residuals that its parameters bring along."""
        for name, numel in zip(layout.names, layout.numels, strict=True):
            if self._parameters.get(name) != numel:
                raise ValueError(f"layout must name parameters of the model, got {name!r} with {numel} entries.")
        brought = {name: self._places[name] for name in layout.names if name in self._places}
        for old, _ in brought.values():
            self._parts.pop(old.layout, None)
            if old.open:
                self._go_on_or_forget(old)
        part = self._new_part(layout, grad)
        if any(old.open for old, _ in brought.values()):
            part.open = True
            self._open_parts.append(part)
        for name, (old, piece) in brought.items():
            here, shape = self._places[name][1], self._shapes[name]
            newest = (old.next_residual, old.next_velocity) if old.open else (old.residual, old.velocity)
            for new, saved in (
                (part.residual, old.residual),
                (part.velocity, old.velocity),
                (part.next_residual, newest[0]),
                (part.next_velocity, newest[1]),
            ):
                if new is not None and saved is not None:
                    here.of(new, shape).copy_(piece.of(saved, shape))
            part.clean = part.clean and old.clean
        return part


def _tell_renamed(old: str, new: str) -> None:
    warnings.warn(f"ErrorFeedback.{old} is called {new}. Use that name.", DeprecationWarning, stacklevel=3)
