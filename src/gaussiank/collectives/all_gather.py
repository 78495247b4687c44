"""All-gather: every worker gets every payload and adds them up in rank order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from gaussiank import codec, cost, ops
from gaussiank.codec import Wire
from gaussiank.comm import Communicator
from gaussiank.cost import TRAILER_BYTES, Cost, Load
from gaussiank.ops import RowFormat
from gaussiank.sparse import SparseGradient

from .base import Collective, ExchangeContext, Outcome, Program
from .packing import (
    Quantized,
    at_drawn,
    frame_for,
    pack_within,
    quantize_and_pack,
    rest_of,
    unpack,
)

_SPARE_BYTES = 64  # on top of the slack, so that small messages have some too


@dataclass(frozen=True)
class AllGather(Collective):
    """Send each worker's payload to all others; traffic grows with the number of workers.

    Counts may differ between workers, and be zero: all rows of a message have one length. Where a known count fixes the
    size of a payload, rows have that size. Otherwise they are as long as the largest payload of the last step, whose
    size travels along, and a little longer: real selections cluster, so they take less than the most that their count
    can. What does not fit goes back to the residual, smallest entries first. Without a residual, and with a known
    count, rows have room for the most that the count can take. Where no count is known, the first exchange asks for the
    largest payload.

    Args:
        slack: room over the last largest payload where nothing bounds the count, at least 1; a larger one pads more and
            delays less.
        spread: the same where the count is known, and only the places of the entries are not.
        ask: ask for the largest payload every time, one more short message that ``start`` waits for; nothing comes
            back.

    Source: the aggregation of the paper, step 1 of its algorithm.
    Differs: the published code cuts the gathered entries into equal slices and drops repeated indices; here each
    worker's entries are added in rank order, so nothing is dropped and all workers get the same bits.
    """

    multi_phase: ClassVar[bool] = False
    sends_values_alone: ClassVar[bool] = True  # each payload says which draw it is of

    slack: float = 1.25
    spread: float = 1.02
    ask: bool = False

    def __post_init__(self) -> None:
        for argument in ("slack", "spread"):
            if not getattr(self, argument) >= 1:
                raise ValueError(f"{argument} must be at least 1, got {getattr(self, argument)}. 1.25 adds a quarter.")

    def rejects(self, *, bounded: bool) -> bool:
        """Tell whether entries may come back where nobody keeps them.

        Where the count is known, none do: there is room for the most that the count can take. Where it is not, what
        outgrows the room that the last payloads suggest comes back, unless ``ask``. With a residual, payloads of
        varying size may outgrow their room in both cases, and the residual takes what comes back.
        """
        return not bounded and not self.ask

    def cost(self, load: Load, world_size: int) -> Cost:
        """Everyone's k entries go to everyone else, in rows of about what they take."""
        return cost.all_gather(load, world_size)

    def message_bytes(self, k: int, numel: int, world_size: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
        """A payload, and its size where that varies."""
        return wire.max_bytes(k, numel, dtype) + (TRAILER_BYTES if wire.varies else 0)

    def row_format(self, wire: Wire, capacity: int | None, numel: int) -> RowFormat | None:
        """The one message, where a count fixes its size."""
        return None if capacity is None else wire.row_format(capacity, numel)

    def program(self, sparse: SparseGradient, context: ExchangeContext) -> Program:
        """Send the payload to all, in one message: of a size that is known beforehand, or padded to one.

        Both forms have three phases. *Pack*: round to the wire and encode, as long as every other worker's row.
        *Gather*: the one message. *Add*, in the callback: decode rows and add them in rank order; of what was packed,
        the rounding errors go back, and in the padded form the entries that found no room.
        """
        if context.capacity is not None and (not context.wire.varies or context.take_more is None):
            return self._of_known_size(sparse, context, context.capacity)
        return self._padded(sparse, context)

    def _of_known_size(self, sparse: SparseGradient, context: ExchangeContext, capacity: int) -> Program:
        shared, dtype, numel = context.shared, sparse.values.dtype, sparse.numel
        if shared is not None:
            sparse = at_drawn(sparse, shared.draw(numel, capacity))
        layout = self.row_format(context.wire, capacity, numel) if dtype == torch.float32 else None
        counters = None
        if sparse.row is None:
            generator = context.generator(sparse.values.device)
            row, quantized = quantize_and_pack(sparse, context.wire, capacity, generator, shared=shared)
        else:  # a kernel has packed it already, and its residual holds what was rounded off
            assert layout is not None
            row, counters = layout.parted(sparse.row)
            quantized = Quantized(sparse)
        rows = yield context.comm.all_gather(row)
        out = yield None
        narrow = context.narrow() if quantized.error is None else None  # else that joins the residual first
        finite = None if layout is None else ops.mean_of_rows(rows, layout, out, narrow, counters)
        if finite is None:
            narrow = None
            parts = [context.wire.decode(row, numel, dtype=dtype, capacity=capacity, shared=shared) for row in rows]
            finite = ops.scatter_mean(parts, out)
        yield Outcome(finite, rounded_off=quantized.errors(), narrowed=narrow is not None)

    def _padded(self, sparse: SparseGradient, context: ExchangeContext) -> Program:
        generator, length = context.generator(sparse.values.device), self._length(sparse, context)
        if length is None:  # the largest payload is asked for, in a message of its own
            packed = context.wire.pack(sparse, generator=generator)
            quantized, mask = Quantized(sparse, packed.error), None
            row = codec.framed(packed.row, _largest(packed.size, packed.row.device, context.comm))
        else:
            row, _, quantized, mask = pack_within(sparse, context.wire, length, generator)
        rows = yield context.comm.all_gather(row)
        out = yield None
        parts = unpack(rows, context.wire, [sparse.numel] * len(rows), sparse.values.dtype, None)
        finite, hint = ops.scatter_mean(parts, out), context.hint
        if bool(finite):  # what infinities and NaN took says nothing of the next step
            capacity = -1 if context.capacity is None else context.capacity
            hint = torch.tensor([max(codec.framed_sizes(rows)), capacity], device="cpu")
        yield Outcome(finite, None if mask is None else rest_of(sparse, mask), quantized.errors(), hint)

    def _length(self, sparse: SparseGradient, context: ExchangeContext) -> int | None:
        """Return the length of all payloads with their padding, the same on every worker; None: ask for it."""
        known = context.hint is not None and context.hint.numel() == 2
        largest, capacity = context.hint.tolist() if context.hint is not None and known else (0, 0)
        if context.capacity is None:
            return math.ceil(largest * self.slack) + _SPARE_BYTES if known and not self.ask else None
        most = context.wire.max_bytes(context.capacity, sparse.numel, sparse.values.dtype)
        if not known or capacity != context.capacity:
            return most
        return frame_for(largest, self.spread, most)


def _largest(size: int, device: torch.device, comm: Communicator) -> int:
    """Ask for the largest of all workers' sizes, and wait: no callback may."""
    largest = torch.tensor([size], dtype=torch.int64, device=device)
    return int(comm.all_reduce(largest, dist.ReduceOp.MAX).wait())
