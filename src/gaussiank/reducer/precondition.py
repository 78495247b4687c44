"""AdamW for sparse exchanges: divide each local gradient by its row's root mean square before anything is selected."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gaussiank.collectives import Exchange, Outcome
from gaussiank.collectives.base import Program
from gaussiank.comm import Communicator, Work
from gaussiank.layout import Layout, Strides

_HEADER_BYTES = 2
_BIAS = 1024  # of the exponent in the header
_TOP = 254  # code of the largest mean square
_ZERO, _NONFINITE = 0, 255
_STEPS = 4  # codes in an octave: 9 % at most in a mean square, 4.5 % in what a gradient is divided by
_QUARTERS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)  # of an octave, in float64
_VALUES = [0.0, *(math.ldexp(_QUARTERS[(code - _TOP) % 4], (code - _TOP) // 4) for code in range(1, 255)), math.inf]
_POWERS = [math.ldexp(1.0, exponent - _BIAS) for exponent in range(2 * _BIAS)]


@dataclass(frozen=True)
class AdamRows:
    """Adam's second moment, one number a row, from the dense local gradients; use it with SGD without momentum.

    ``u = grad / (sqrt(v) + eps)`` goes through error feedback and selection in the gradient's place, and the step after
    it is plain SGD, whose weight decay is then AdamW's. ``v`` is the running mean of squares of a row of a matrix, of
    what makes one output (of each entry of a vector), averaged over workers and divided by their number: the second
    moment of the mean, where noise rules, so that learning rates are about those of dense AdamW. What workers measure
    in a step travels at its end, in 8 bits a row, and counts from the next one on; in its own step each worker uses its
    own part. Entries that are selected in a step have one scale then, so count k by parameter (``scope="layer"``).

    Args:
        beta2: in [0, 1); how much of the running mean stays in a step. A larger one remembers longer.
        eps: above 0; added to the root.
        outputs: name of a parameter -> the dimensions that tell its outputs apart, where that is not the first alone.
            Those of ``Conv1D`` of transformers (GPT-2), of transposed convolutions and of stacks of matrices (experts)
            are known. A moment for each input in place of each output costs as much as none (docs/adamw.md).

    Raises:
        ValueError: one of them out of its range.

    Source: Kingma and Ba 2015, "Adam", algorithm 1, with beta1 = 0; one number for a row: Zhang et al. 2024,
    "Adam-mini". Differs: the moment is of the dense gradient and the division comes before the selection, where
    AdamW would divide what arrives, whose entries have gathered for as many steps as they waited.

    Example:
        >>> AdamRows().beta2
        0.95
    """

    beta2: float = 0.95
    eps: float = 1e-8
    outputs: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 must be in [0, 1), got {self.beta2}. 0.95 is usual here.")
        if not (self.eps > 0 and math.isfinite(self.eps)):
            raise ValueError(f"eps must be above 0 and finite, got {self.eps}. 1e-8 is usual.")


def output_dimensions(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the dimensions of outputs of those parameters of a model that have others than the first.

    Example:
        >>> output_dimensions(nn.ModuleDict({"up": nn.ConvTranspose2d(3, 8, 2), "out": nn.Linear(8, 2)}))
        {'up.weight': (1,)}
    """
    found: dict[str, tuple[int, ...]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            turned = isinstance(module, _ConvTransposeNd) and module.groups == 1
            # transformers' Conv1D multiplies from the right: [inputs, outputs], nf of these
            turned = turned or (type(module).__name__ == "Conv1D" and not isinstance(module, _ConvNd))
            if parameter.dim() > 1 and turned:
                found[name] = (1,)
            elif parameter.dim() > 2 and not isinstance(module, _ConvNd):
                found[name] = tuple(range(parameter.dim() - 1))
    return found


@dataclass(eq=False)
class _Rows:
    """Second moments of one layout, end to end.

    Args:
        blocks: of each parameter: its place in the vector, its rows' place here, and how it lies in memory.
        parameter: int64 ``[rows]``, number of the parameter that a row is of.
        moment: ``[rows]`` float32, the weighted sum of mean squares.
        weight: ``[rows]`` float32, the sum of weights; their quotient is the mean, without Adam's bias.
        own: ``[rows]``, what this worker has measured in the step under way.
        mean: ``[rows]``, its mean over workers, once it has arrived.
    """

    blocks: list[tuple[str, slice, slice, Strides]]
    parameter: Tensor
    moment: Tensor
    weight: Tensor
    own: Tensor | None = None
    mean: Tensor | None = None

    def commit(self, beta2: float) -> None:
        """Let what all workers have measured join, but of parameters that nobody used, and of rows that overflow."""
        mean, self.own, self.mean = self.mean, None, None
        if mean is None:
            return
        used = torch.zeros(len(self.blocks), device=mean.device).index_add_(0, self.parameter, mean)
        joins = (used > 0)[self.parameter] & torch.isfinite(mean)
        self.moment = torch.where(joins, self.moment * beta2 + mean * (1 - beta2), self.moment)
        self.weight = torch.where(joins, self.weight * beta2 + (1 - beta2), self.weight)


class Preconditioner:
    """The second moments of one model, the same on every worker; they follow the transaction of the residuals.

    Args:
        rule: the settings.
        shapes: name -> shape of every parameter.
        world_size: number of workers.
    """

    def __init__(self, rule: AdamRows, shapes: Mapping[str, int | Sequence[int]], world_size: int) -> None:
        self._rule, self._world_size = rule, world_size
        self._shapes = {name: (shape,) if isinstance(shape, int) else tuple(shape) for name, shape in shapes.items()}
        self._outputs = {name: self._checked(name, dims) for name, dims in rule.outputs.items()}
        self._rows: dict[Layout, _Rows] = {}
        self._places: dict[str, tuple[_Rows, slice]] = {}
        self._loaded: dict[str, tuple[Tensor, Tensor]] = {}
        self._measured: list[tuple[_Rows, Tensor]] = []  # in the step under way, in the order of its vectors
        self._tables: tuple[Tensor, Tensor] | None = None

    def rows(self, name: str) -> int:
        """Return how many second moments a parameter has."""
        shape = self._shapes[name]
        if name in self._outputs:
            return math.prod(shape[dim] for dim in self._outputs[name])
        return shape[0] if len(shape) > 1 else math.prod(shape)

    def _checked(self, name: str, dims: int | tuple[int, ...]) -> tuple[int, ...]:
        """Return dimensions of outputs in their order.

        Raises:
            ValueError: no such parameter, or no such dimensions of it.
        """
        found = (dims,) if isinstance(dims, int) else tuple(dims)
        shape = self._shapes.get(name, ())
        if not found or len({*found}) < len(found) or not {*found} < {*range(len(shape))}:
            raise ValueError(
                f"outputs of AdamRows must name some dimensions of a parameter, not all, got {dims} for {name} of "
                f"shape {tuple(shape)}. Give those that tell its outputs apart, by its name in named_parameters()."
            )
        return tuple(sorted(found))

    # ------------------------------------------------------------------ one step

    def begin(self) -> None:
        """Begin a step: nothing is measured yet."""
        self._measured = []

    def apply(self, layout: Layout, grads: Sequence[Tensor], scale: float) -> None:
        """Divide a local gradient by the root mean squares of its rows, in place.

        Args:
            layout: parameters in ``grads``, end to end.
            grads: flat local gradients.
            scale: what a ``GradScaler`` has multiplied them by; they stay multiplied by it.
        """
        rows = self._rows.get(layout) or self._made(layout, grads[0].device)
        roots = torch.empty_like(rows.moment)
        views = list(self._views(rows, grads))
        for (name, _, place, _), view in zip(rows.blocks, views, strict=True):
            if view.dim() > 1:
                kept = self._outputs.get(name, (0,))
                inputs = tuple(dim for dim in range(view.dim()) if dim not in kept)
                norms = torch.linalg.vector_norm(view, dim=inputs, dtype=torch.float32)
                roots[place] = norms.flatten() / max(1, view.numel() // max(1, norms.numel())) ** 0.5
            else:
                roots[place] = view
        rows.own = roots.div_(scale * self._world_size**0.5).square_()
        self._measured.append((rows, rows.own))
        beta2 = self._rule.beta2
        mean = (rows.moment * beta2 + rows.own * (1 - beta2)) / (rows.weight * beta2 + (1 - beta2))
        factors = mean.sqrt_().add_(self._rule.eps).reciprocal_()
        factors.masked_fill_(~torch.isfinite(rows.own), torch.nan)  # so that every worker learns of it
        for (name, _, place, _), view in zip(rows.blocks, views, strict=True):
            kept = self._outputs.get(name, (0,))
            view.mul_(factors[place].view([size if dim in kept else 1 for dim, size in enumerate(view.shape)]))

    def exchange(self, label: str) -> MomentStep | None:
        """Return what sends the step's measurements, once all its vectors are under way; None for nothing to send."""
        if not self._measured:
            return None
        self._tables = self._tables or _tables(self._measured[0][1].device)
        return MomentStep(self._measured, self._tables, label)

    def commit(self, layout: Layout) -> None:
        """End a step of a layout: what was measured joins the moments."""
        if layout in self._rows:
            self._rows[layout].commit(self._rule.beta2)

    def forget(self, layout: Layout) -> None:
        """End a step of a layout: the moments stay as they were before it."""
        if layout in self._rows:
            self._rows[layout].own = self._rows[layout].mean = None

    def _views(self, rows: _Rows, grads: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield each parameter of some gradients: ``[rows, inputs]``, in its shape, or ``[entries]`` of a vector."""
        left, begins = list(grads), 0
        for name, place, _, strides in rows.blocks:
            while place.start >= begins + left[0].numel() and len(left) > 1:
                begins += left.pop(0).numel()
            piece, shape = left[0][place.start - begins : place.stop - begins], self._shapes[name]
            if strides is not None:
                yield piece.as_strided(shape, strides)
            elif name in self._outputs:
                yield piece.view(shape)
            else:
                yield piece if len(shape) < 2 else piece.view(shape[0], -1 if shape[0] else 0)

    def _made(self, layout: Layout, device: torch.device) -> _Rows:
        """Make the rows of a layout, with the moments that its parameters bring along."""
        blocks, at = [], 0
        for name, piece in layout.pieces():
            blocks.append((name, piece.place, slice(at, at + self.rows(name)), piece.strides))
            at += self.rows(name)
        counts = torch.tensor([place.stop - place.start for _, _, place, _ in blocks], device="cpu")
        number = torch.arange(len(blocks), device="cpu").repeat_interleave(counts).to(device, non_blocking=True)
        rows = _Rows(blocks, number, torch.zeros(at, device=device), torch.zeros(at, device=device))
        for name, _, place, _ in blocks:
            if (brought := self._known(name)) is not None:
                rows.moment[place], rows.weight[place] = (one.to(device) for one in brought)
            self._loaded.pop(name, None)
            if name in self._places:
                stale = self._places[name][0]
                self._rows = {known: one for known, one in self._rows.items() if one is not stale}
        for name, _, place, _ in blocks:
            self._places[name] = (rows, place)
        self._rows[layout] = rows
        return rows

    def _known(self, name: str) -> tuple[Tensor, Tensor] | None:
        if name in self._places:
            rows, place = self._places[name]
            return rows.moment[place], rows.weight[place]
        return self._loaded.get(name)

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return copies of all moments and their weights, by parameter: ``[rows]`` each."""
        known = {name: held for name in self._shapes if (held := self._known(name)) is not None}
        return {
            "moment": {name: moment.clone() for name, (moment, _) in known.items()},
            "weight": {name: weight.clone() for name, (_, weight) in known.items()},
        }

    def require_fitting(self, state: Mapping[str, Any] | None) -> None:
        """Raise what ``load_state_dict`` would, and change nothing.

        Raises:
            ValueError: no moments, or those of other rows.
        """
        if state is None:
            raise ValueError(
                "state must hold the second moments of precondition, got a state of a run without it. Leave "
                "precondition out, or start without the state."
            )
        for kind in ("moment", "weight"):
            for name, saved in state[kind].items():
                if name not in self._shapes or saved.shape != (self.rows(name),):
                    rows = self.rows(name) if name in self._shapes else "no such parameter"
                    raise ValueError(
                        f"second moments of {name} must have {rows} rows, got shape {tuple(saved.shape)}. "
                        "Load the state of this model."
                    )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all moments by saved ones."""
        self._rows, self._places, self._measured = {}, {}, []
        self._loaded = {name: (moment.clone(), state["weight"][name]) for name, moment in state["moment"].items()}


class MomentStep:
    """What all workers have measured in a step, on its way: one message of 8 bits a row.

    Args:
        measured: the rows of each vector, and what this worker has measured, in the order of the step.
        tables: to decode it with.
        name: of the message, in errors.
    """

    def __init__(self, measured: Sequence[tuple[_Rows, Tensor]], tables: tuple[Tensor, Tensor], name: str) -> None:
        self._measured, self._tables, self._name = measured, tables, name
        self._own = torch.cat([own for _, own in measured])
        self.device = self._own.device

    def label(self) -> str:
        """Name the message in errors."""
        return self._name

    def sent_bytes(self, world_size: int) -> int:
        """Return what this worker sends."""
        return (world_size - 1) * (_HEADER_BYTES + self._own.numel())

    def send(self, group: dist.ProcessGroup) -> Exchange:
        """Send this worker's part over a group."""
        comm = Communicator(group)
        program = self._program(comm)
        work = next(program)
        assert isinstance(work, Work)
        self._exchange = Exchange(program, comm, work)
        return self._exchange

    def _program(self, comm: Communicator) -> Program:
        gathered = yield comm.all_gather(encoded(self._own))
        out = yield None
        out.zero_()
        for row in gathered:  # in rank order: the same bits everywhere
            out.add_(decoded(row, self._tables))
        out.div_(len(gathered))
        yield Outcome(out.new_ones((), dtype=torch.bool))

    @torch.no_grad()  # it runs in threads of the backend
    def receive(self, exchange: Exchange) -> Tensor:
        """Hand the mean out to the rows that are still of the step."""
        mean = torch.empty_like(self._own)
        exchange.finish(mean)
        for (rows, own), part in zip(
            self._measured, mean.split([own.numel() for _, own in self._measured]), strict=True
        ):
            if rows.own is own:  # else it is late, after an error
                rows.mean = part
        return mean


def encoded(squares: Tensor) -> Tensor:
    """Write mean squares with a common exponent and 8 bits each: quarters of an octave below the largest.

    Args:
        squares: float32 ``[rows]``, none negative.

    Returns:
        uint8 ``[2 + rows]``.

    Example:
        >>> decoded(encoded(torch.tensor([4.0, 1.0, 0.0, torch.inf]))).tolist()
        [4.0, 1.0, 0.0, inf]
    """
    finite = torch.isfinite(squares)
    peak = torch.where(finite, squares, 0.0).amax()
    exponent = torch.where(peak > 0, peak.log2().ceil(), 0.0)
    codes = ((squares.log2() - exponent) * _STEPS).round().add_(_TOP).clamp_(1, _TOP)
    codes = torch.where(squares > 0, codes, float(_ZERO))
    codes = torch.where(finite, codes, float(_NONFINITE)).to(torch.uint8)
    shifted = exponent.add(_BIAS).int().view(1)
    return torch.cat([(shifted % 256).to(torch.uint8), (shifted // 256).to(torch.uint8), codes])


def decoded(row: Tensor, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Read what ``encoded`` has written; float32 ``[rows]``, by tables and one product, so that bits are the same."""
    values, powers = tables or _tables(row.device)
    exponent = row[0].long() + 256 * row[1].long()
    return (values[row[_HEADER_BYTES:].long()] * powers.index_select(0, exponent.view(1))).float()


def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    values, powers = (torch.tensor(table, dtype=torch.float64, device="cpu") for table in (_VALUES, _POWERS))
    return values.to(device, non_blocking=True), powers.to(device, non_blocking=True)
