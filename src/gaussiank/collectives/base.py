"""What every collective is, the dense one, and what a collective asks of compressors and wires."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank import cost, ops
from gaussiank.codec import VALUE_CODES, SharedDraw, Wire, sections
from gaussiank.comm import ALIGNED_BYTES, Communicator, Work
from gaussiank.compressors import Compressor
from gaussiank.cost import TRAILER_BYTES, Cost, Load, Traffic
from gaussiank.ops import NarrowMean, RowFormat
from gaussiank.sparse import MAX_NUMEL, SparseGradient

from .packing import EXACT


class Outcome(NamedTuple):
    """What came back.

    Attributes:
        finite: 0-d bool tensor, whether every entry that was written is finite; the same on every worker.
        rejected: what this worker selected and the mean does not hold, or None when all of it entered.
        rounded_off: what the mean lacks because values were rounded on their way, as far as this worker answers for it:
            of its own entries, and of sums that it rounded.
        hint: small tensor to pass to the next exchange of these parameters, the same on every worker, or None.
        narrowed: whether the gradient of 16 bits has become the mean, and its residual got what that rounds off.
    """

    finite: Tensor
    rejected: SparseGradient | None = None
    rounded_off: tuple[SparseGradient, ...] = ()
    hint: Tensor | None = None
    narrowed: bool = False


@dataclass(frozen=True, eq=False)
class ExchangeContext:
    """All that an exchange may depend on besides its entries; passed in, so that collectives hold no state.

    Args:
        comm: what to send with.
        wire: how entries travel.
        capacity: largest count on any worker, known to all without asking; None when only the data limits it.
        step: backwards that have exchanged, used by an optimizer or not; the same on every worker.
        part: number of this exchange within its step, the same on every worker.
        hint: what the last exchange of these parameters returned, or None at the first.
        take_more: takes what this worker still holds at the given int32 indices out of its residual, and returns it;
            None when it holds no residual.
        shared: how all workers drew their indices, for a wire that does not send them; with a capacity alone.
        narrow: returns the gradient of 16 bits that the mean is for, at the end, if a kernel may write it there.
    """

    comm: Communicator
    wire: Wire = EXACT
    capacity: int | None = None
    step: int = 0
    part: int = 0
    hint: Tensor | None = None
    take_more: Callable[[Tensor], Tensor] | None = None
    shared: SharedDraw | None = None
    narrow: Callable[[], NarrowMean | None] = lambda: None

    @property
    def draw(self) -> Callable[[Tensor], Tensor] | None:
        """``take_more``, by its old name."""
        warnings.warn("ExchangeContext.draw is called take_more. Use that name.", DeprecationWarning, stacklevel=2)
        return self.take_more

    def generator(self, device: torch.device, phase: int = 0, rank: int | None = None) -> torch.Generator | None:
        """Return the source of stochastic rounding, or None where the wire rounds to nearest.

        Args:
            device: of what is rounded.
            phase: what is rounded: another one for each message of an exchange.
            rank: those who must round alike give the same; None for this worker's own.
        """
        if self.wire.rounding != "stochastic":
            return None
        own = self.comm.rank if rank is None else rank
        seed = (((self.step << 16) + self.part << 8) + phase << 16) + own & (2**63 - 1)
        return torch.Generator(device).manual_seed(seed)


Program = Generator[Work[Any] | Outcome | None, Any, None]
"""An exchange as one piece of code: it yields each message and gets back what arrived; after the last one it yields
None, gets the vector to write the mean to, and yields what came of it. From the None on it must not send or wait. After
the Outcome it is not resumed: suspended, it holds its tensors for as long as an accelerator may use them."""


@dataclass(eq=False)
class Exchange:
    """A program that waits for its message; it holds all that the exchange needs.

    Args:
        program: started, up to its first message.
        comm: what it sends with.
        work: the message under way.

    Attributes:
        sent_bytes: that this worker has put on the wire for it, once it has ended.
    """

    program: Program
    comm: Communicator
    work: Work[Any]
    sent_bytes: int = field(default=0, init=False)
    _complete: bool = field(default=False, init=False)

    def advance(self) -> bool:
        """Wait for the message under way and send the next one; False when there was none left to send.

        Raises:
            RuntimeError: the communication failed: a worker is gone.
        """
        if not self._complete:
            following = self.program.send(self.work.wait())
            if isinstance(following, Work):
                self.work = following
            else:
                self._complete = True
        return not self._complete

    def finish(self, out: Tensor) -> Outcome:
        """Write the mean over workers to ``out``, after the last message.

        Once the last message has arrived it only computes: so the executor calls it, in a callback of that message or
        in its thread. Called earlier, it sends and awaits what is left: never do that in a callback.

        Args:
            out: float32 or float64 ``[numel]``; overwritten.

        Raises:
            RuntimeError: the communication failed: a worker is gone, or its payload is of another format.
        """
        while self.advance():
            pass
        self.sent_bytes = self.comm.sent_bytes
        outcome = self.program.send(out)
        assert isinstance(outcome, Outcome)  # what follows None
        return outcome


@dataclass(frozen=True)
class WireLoad:
    """Rows of the real codec, for ``gaussiank.cost``: float32 entries that lie anywhere.

    Args:
        numel: length of the vector.
        k: entries that each worker selects.
        wire: how they travel.
    """

    numel: int
    k: int
    wire: Wire = EXACT

    def whole(self, entries: float) -> int:
        """Round up."""
        return math.ceil(entries)

    def union(self, workers: float) -> float:
        """At its worst: no entry of one worker coincides with another's."""
        return workers * self.k

    def selection_bytes(self) -> int:
        """What it usually takes, and its size where that varies."""
        return self.wire.usual_bytes(self.k, self.numel) + (TRAILER_BYTES if self.wire.varies else 0)

    def region_bytes(self, entries: float, regions: float) -> int:
        """What they usually take."""
        return self.wire.usual_bytes(math.ceil(entries), math.ceil(self.numel / regions))

    def row_bytes(self, entries: float, runs: float = 1) -> int:
        """At most, wherever they lie in the vector: indices of a run begin at 0 as well."""
        return self.wire.max_bytes(math.ceil(entries), self.numel)

    def indices_bytes(self) -> int:
        """None are told where all workers have drawn the same."""
        return 0 if self.wire.index == "seed" else sections.indices_bytes(self.wire, self.k, self.numel)

    def values_bytes(self, entries: float) -> int:
        """A section of values."""
        return sections.values_bytes(self.wire, math.ceil(entries))

    def exact_bytes(self, entries: float) -> int:
        """A row with values in 32 bits."""
        return replace(self.wire, values="fp32", rounding="nearest").max_bytes(math.ceil(entries), self.numel)


class Collective(ABC):
    """How workers agree on the mean of their sparse gradients. Frozen: whatever is under way lives in the Exchange.

    Attributes:
        multi_phase: whether one message depends on what another brought, so that someone has to wait in between.
        sends_values_alone: whether it can do without indices where all workers have drawn the same.
    """

    multi_phase: ClassVar[bool] = True
    sends_values_alone: ClassVar[bool] = False

    def rejects(self, *, bounded: bool) -> bool:
        """Tell whether entries may come back where nobody keeps a residual that could take them.

        Args:
            bounded: whether the compressor's count is known beforehand.
        """
        return True

    def join(self, group: dist.ProcessGroup | None = None, timeout_s: float = 300.0) -> Collective:
        """Get ready for a process group, on all of its workers at once; returns what to use there.

        Args:
            group: process group, or None for the default one.
            timeout_s: seconds after which a message of a group that is made here fails.
        """
        return self

    @abstractmethod
    def cost(self, load: Load, world_size: int) -> Cost:
        """Return what one exchange costs, by the formula that ``gaussiank.cost`` has for it."""

    def levels(self, world_size: int) -> tuple[int, ...]:
        """Return the members of each level that its cost tells apart, the innermost first."""
        return ()

    def traffic(self, numel: int, k: int, world_size: int, wire: Wire = EXACT) -> Traffic:
        """Return the messages and bytes of one exchange when each worker sends ``k`` float32 entries of ``[numel]``.

        Bytes are those of entries that lie anywhere; where they cluster, ``allgather`` sends fewer.
        """
        return self.cost(WireLoad(numel, k, wire), world_size).traffic(world_size, self.levels(world_size))

    @abstractmethod
    def message_bytes(self, k: int, numel: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
        """Return the most bytes that one message takes from a worker to another one, with all that stands in it.

        Args:
            k: entries of each worker, at most.
            numel: length of the vector that they are of, at most.
            world_size: number of workers.
            wire: how entries travel.
            dtype: of the values.
        """

    def row_format(self, wire: Wire, capacity: int | None, numel: int) -> RowFormat | None:
        """Return where a row holds what, if all of a worker's entries are sent in one that a kernel can write.

        Args:
            wire: how entries travel.
            capacity: largest count on any worker, None when only the data limits it.
            numel: length of the vector.
        """
        return None

    @abstractmethod
    def program(self, sparse: SparseGradient, context: ExchangeContext) -> Program:
        """Yield the messages of an exchange, one after another; sends at least one."""

    def start(
        self, sparse: SparseGradient, *, capacity: int | None, group: dist.ProcessGroup | None = None, **more: Any
    ) -> Exchange:
        """Send this worker's entries.

        Args:
            sparse: what this worker contributes; the same numel on every worker, any count.
            capacity: largest count on any worker, known to all without asking; None when only the data limits it.
            group: process group, or None for the default one.
            more: further fields of ``ExchangeContext``.

        Raises:
            ValueError: more entries than ``capacity``.
        """
        comm = Communicator(group)
        program = self.program(sparse, ExchangeContext(comm, capacity=capacity, **more))
        first = next(program)
        assert isinstance(first, Work)  # it sends at least one
        return Exchange(program, comm, first)


# ---------------------------------------------------------------------- what it asks of a compressor and a wire


class Demands(Protocol):
    """What compressors and wires have to know of a collective, or of what chooses among some."""

    @property
    def sends_values_alone(self) -> bool:
        """Whether it can do without indices where all workers have drawn the same."""

    def rejects(self, *, bounded: bool) -> bool:
        """Tell whether entries may come back where nobody keeps a residual that could take them."""

    def message_bytes(self, k: int, numel: int, world_size: int, wire: Wire, dtype: torch.dtype = ...) -> int:
        """Return the most bytes that one message takes."""


def require_feedback(collective: Demands, compressor: Compressor) -> None:
    """Raise when a collective may send entries back and the compressor's rest is kept by nobody.

    Raises:
        ValueError: so it is.
    """
    if not compressor.keeps_rest and collective.rejects(bounded=compressor.capacity(1, 2) is not None):
        raise ValueError(
            f"collective must send nothing back to a compressor without feedback, got {collective} for {compressor}. "
            "Use allgather:ask=true, or a compressor that keeps what comes back."
        )


def fitting_wire(wire: Wire, compressor: Compressor, collective: Demands) -> Wire:
    """Take the index code ``seed`` where every worker knows the indices already; else the wire as it is.

    With it, payloads have one size, and values that vary in theirs are sent as ``bf16``: of random entries not much
    could be saved.

    Raises:
        ValueError: the wire is ``seed``, and the compressor draws otherwise or the collective needs indices.

    Example:
        >>> from gaussiank.compressors import RandomK
        >>> from gaussiank.collectives import AllGather, Split
        >>> str(fitting_wire(Wire(), RandomK(shared=True), AllGather()))
        'seed+bf16'
        >>> str(fitting_wire(Wire(), RandomK(shared=True), Split()))
        'rice+bf16-rice'
    """
    if wire.index == "seed" and not compressor.draws_alike:
        raise ValueError(
            f"wire must send the indices of {compressor}, got {wire}. "
            "Take rice in place of seed, or the compressor randomk:shared=true without max_bytes."
        )
    if wire.index == "seed" and not collective.sends_values_alone:
        raise ValueError(
            f"wire must send its indices with {collective}, got {wire}. "
            "Take rice in place of seed, or the collective allgather or leader."
        )
    if compressor.draws_alike and collective.sends_values_alone:
        return Wire("seed", VALUE_CODES[wire.values].plain or wire.values, wire.rounding)
    return wire


def entries_within(
    max_bytes: int, collective: Demands, wire: Wire, parameters: Iterable[Tensor], world_size: int, *, layers: bool
) -> int:
    """Return how many entries may be chosen, so that no message from one worker to another is longer than a budget.

    It holds wherever the entries lie and however the parameters are put in buckets: the number is that for a vector of
    all parameters, and a message of a shorter one is not longer.

    Args:
        max_bytes: the budget; on an accelerator whole multiples of 128 of it are used.
        collective: how workers agree.
        wire: how entries travel.
        parameters: of the model.
        world_size: number of workers.
        layers: whether entries are chosen in each parameter by itself; all of them may be in one message.

    Raises:
        ValueError: not even one fits.

    Example:
        >>> from gaussiank.collectives import AllGather
        >>> wire, parameters = Wire("raw", "fp32"), [torch.zeros(500), torch.zeros(600)]
        >>> entries_within(20 + 8 * 10, AllGather(), wire, parameters, 4, layers=False)
        10
    """
    held = [parameter for parameter in parameters if parameter.numel()]
    dtype = torch.float64 if any(parameter.dtype == torch.float64 for parameter in held) else torch.float32
    numel = max(1, min(MAX_NUMEL, sum(parameter.numel() for parameter in held)))
    times = max(1, len(held)) if layers else 1

    def longest(k: int) -> int:
        return collective.message_bytes(min(k * times, numel), numel, world_size, wire, dtype)

    step = 1 if all(parameter.is_cpu for parameter in held) else ALIGNED_BYTES  # gathered rows are filled up to it
    least = -(-longest(1) // step) * step
    if max_bytes < least:
        raise ValueError(
            f"max_bytes must be at least {least}, the longest message of {type(collective).__name__} with one entry"
            f"{' of each parameter' if layers else ''}, got {max_bytes}. Raise it, or take another collective."
        )
    low, high = 1, numel
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if longest(middle) <= max_bytes - max_bytes % step else (low, middle - 1)
    return low


# ---------------------------------------------------------------------- the dense one


@dataclass(frozen=True)
class DenseAllReduce(Collective):
    """Sum dense vectors over workers; ``sent_bytes`` is that of a ring, 2 (P - 1) / P of the vector."""

    multi_phase: ClassVar[bool] = False

    def rejects(self, *, bounded: bool) -> bool:
        """Everything enters."""
        return False

    def cost(self, load: Load, world_size: int) -> Cost:
        """Float32 values, in a ring."""
        return cost.dense(4 * load.numel)

    def message_bytes(self, k: int, numel: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
        """What a worker sends to the next one of a ring."""
        return 2 * (world_size - 1) * numel * dtype.itemsize // world_size

    def program(self, sparse: SparseGradient, context: ExchangeContext) -> Program:
        """Spread the entries over a dense vector and send that; neither counts nor the wire matter."""
        mean = sparse.dense().div_(context.comm.world_size)
        yield context.comm.all_reduce(mean)
        out = yield None
        out.copy_(mean)
        yield Outcome(ops.all_finite(out))
