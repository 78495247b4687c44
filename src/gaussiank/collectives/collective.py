"""What every collective is: ``start`` sends, ``finish`` writes the mean; the same bits on every worker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank.sparse import SparseGradient


class Outcome(NamedTuple):
    """What came back.

    Attributes:
        finite: 0-d bool tensor, whether every entry that was written is finite; the same on every worker.
        rejected: what this worker sent and the mean does not hold, or None when all of it entered.
    """

    finite: Tensor
    rejected: SparseGradient | None = None


class Exchange(ABC):
    """A message under way.

    Attributes:
        future: torch's future of the communication.
        sent_bytes: bytes that this worker puts on the wire for it.
    """

    future: torch.futures.Future[Any]
    sent_bytes: int

    @abstractmethod
    def finish(self, out: Tensor) -> Outcome:
        """Write the mean over workers to ``out``, after the future is done.

        Args:
            out: float32 or float64 ``[numel]``; overwritten.

        Raises:
            RuntimeError: the communication failed: a worker is gone, or its payload is of another format.
        """


class Collective(ABC):
    """How workers agree on the mean of their sparse gradients. Frozen: whatever is under way lives in the Exchange."""

    @abstractmethod
    def start(
        self, sparse: SparseGradient, *, capacity: int | None, group: dist.ProcessGroup | None = None
    ) -> Exchange:
        """Send this worker's entries.

        Args:
            sparse: what this worker contributes; the same numel on every worker, any count.
            capacity: largest count on any worker, known to all without asking; None when only the data limits it.
            group: process group, or None for the default one.

        Raises:
            ValueError: more entries than ``capacity``.
        """
