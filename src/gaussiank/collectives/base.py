"""What every collective is: ``start`` sends, ``finish`` writes the mean; the same bits on every worker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank.codec import SharedDraw, Wire
from gaussiank.comm import AnyFuture, Communicator, Work
from gaussiank.sparse import SparseGradient

from .packing import EXACT


class Outcome(NamedTuple):
    """What came back.

    Attributes:
        finite: 0-d bool tensor, whether every entry that was written is finite; the same on every worker.
        rejected: what this worker selected and the mean does not hold, or None when all of it entered.
        rounded_off: what the mean lacks because values were rounded on their way, as far as this worker answers for it:
            of its own entries, and of sums that it rounded.
        hint: small tensor to pass to the next exchange of these parameters, the same on every worker, or None.
    """

    finite: Tensor
    rejected: SparseGradient | None = None
    rounded_off: tuple[SparseGradient, ...] = ()
    hint: Tensor | None = None

    @property
    def returned(self) -> tuple[SparseGradient, ...]:
        """All that this worker's residual gets back, to be added to it."""
        return self.rounded_off if self.rejected is None else (self.rejected, *self.rounded_off)


@dataclass(frozen=True, eq=False)
class ExchangeContext:
    """All that an exchange may depend on besides its entries; passed in, so that collectives hold no state.

    Args:
        comm: what to send with.
        wire: how entries travel.
        capacity: largest count on any worker, known to all without asking; None when only the data limits it.
        step: optimizer steps taken, the same on every worker.
        part: number of this exchange within its step, the same on every worker.
        hint: what the last exchange of these parameters returned, or None at the first.
        draw: takes what this worker still keeps at the given int32 indices out of its residual, and returns it; None
            when nothing is kept.
        shared: how all workers drew their indices, for a wire that does not send them; with a capacity alone.
    """

    comm: Communicator
    wire: Wire = EXACT
    capacity: int | None = None
    step: int = 0
    part: int = 0
    hint: Tensor | None = None
    draw: Callable[[Tensor], Tensor] | None = None
    shared: SharedDraw | None = None

    def seed(self, rank: int, phase: int = 0) -> int:
        """Return a seed for stochastic rounding, the same for all that give the same rank and phase."""
        return (((self.step << 16) + self.part << 8) + phase << 16) + rank & (2**63 - 1)


Finish = Callable[[Tensor], Outcome]
Program = Generator[Work[Any], Any, Finish]
"""A collective as one piece of code: it yields each message, gets back what arrived, and returns how to finish."""


class Exchange:
    """A program that waits for its message.

    Args:
        program: started here, up to its first message.
        comm: what it sends with.
    """

    def __init__(self, program: Program, comm: Communicator) -> None:
        self._program = program
        self._comm = comm
        self._message = next(program)
        self._finish: Finish | None = None

    @property
    def future(self) -> AnyFuture:
        """Torch's future of the message under way."""
        return self._message.future

    @property
    def sent_bytes(self) -> int:
        """Bytes that this worker has put on the wire for it so far."""
        return self._comm.sent_bytes

    def advance(self) -> bool:
        """Wait for the message under way and send the next one; False when there was none left to send.

        Raises:
            RuntimeError: the communication failed: a worker is gone.
        """
        if self._finish is None:
            try:
                self._message = self._program.send(self._message.wait())
            except StopIteration as end:
                self._finish = end.value
        return self._finish is None

    def finish(self, out: Tensor) -> Outcome:
        """Write the mean over workers to ``out``, after the last message; sends and awaits what is left of them.

        Args:
            out: float32 or float64 ``[numel]``; overwritten.

        Raises:
            RuntimeError: the communication failed: a worker is gone, or its payload is of another format.
        """
        while self.advance():
            pass
        assert self._finish is not None  # the program has ended
        return self._finish(out)


class Traffic(NamedTuple):
    """What one exchange costs.

    Attributes:
        messages: messages between two workers that have to follow each other.
        sent_bytes: bytes that each worker sends, on average over workers.
        touched: sparse entries that each worker decodes and adds up.
        straight: messages from each worker to all others at once, that have to follow each other and those.
    """

    messages: int
    sent_bytes: float
    touched: float
    straight: int = 0


class Collective(ABC):
    """How workers agree on the mean of their sparse gradients. Frozen: whatever is under way lives in the Exchange."""

    @property
    def multi_phase(self) -> bool:
        """Whether one message depends on what another brought, so that someone has to wait in between."""
        return True

    def rejects(self, *, bounded: bool) -> bool:
        """Tell whether entries may come back; ``bounded``: the compressor's count is known beforehand."""
        return True

    @property
    def sends_values_alone(self) -> bool:
        """Whether it can do without indices where all workers have drawn the same."""
        return False

    def join(self, group: dist.ProcessGroup | None = None, timeout_s: float = 300.0) -> Collective:
        """Get ready for a process group, on all of its workers at once; returns what to use there.

        Args:
            group: process group, or None for the default one.
            timeout_s: seconds after which a message of a group that is made here fails.
        """
        return self

    def at_step(self, group: dist.ProcessGroup, buckets: Sequence[tuple[int, int]], wire: Wire) -> Collective:
        """Return what to use from the step on that begins: itself, except for Auto.

        Args:
            group: what to send with; all its workers call this before anything of the step is sent.
            buckets: numel and k of each sparse exchange, or of what took its place, in the last step.
            wire: how entries travel.
        """
        return self

    def rests(self) -> bool:
        """Tell whether the step that begins may go as the last one; if so it is counted, and ``at_step`` left out."""
        return True

    def choose(self, numel: int, k: int, world_size: int, wire: Wire = EXACT) -> Collective:
        """Return what to use for ``k`` entries of ``[numel]``, the same on every worker: itself, except for Auto."""
        return self

    @abstractmethod
    def traffic(self, numel: int, k: int, world_size: int, wire: Wire = EXACT) -> Traffic:
        """Return the messages and bytes of one exchange when each worker sends ``k`` float32 entries of ``[numel]``.

        Bytes are those of entries that lie anywhere; where they cluster, ``allgather`` sends fewer.
        """

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
        return Exchange(self.program(sparse, ExchangeContext(comm, capacity=capacity, **more)), comm)
