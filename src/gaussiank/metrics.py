"""What a step sent and how long it took, as measured on this worker."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

_COUNTING = threading.Lock()  # messages arrive on threads of the backend


@dataclass
class Metrics:
    """Measurements of one training step on one worker.

    Attributes:
        step: number of the step, 0 the first.
        density: density asked for.
        numel: entries of all gradients that went through the hook.
        k: entries asked for.
        kept: entries chosen.
        sent_bytes: bytes that this worker put on the wire.
        dense_bytes: what a ring all-reduce of the same gradients would have put there.
        select_s: seconds in accumulation, selection and encoding; they delay backward.
        exchange_s: seconds from the start of each message to its arrival, summed over messages; part of them hides
            behind backward.
        finish_s: seconds in decoding and averaging.
        launched_at: ``time.perf_counter()`` when the last message was started.
    """

    step: int = 0
    density: float = 1.0
    numel: int = 0
    k: int = 0
    kept: int = 0
    sent_bytes: int = 0
    dense_bytes: int = 0
    select_s: float = 0.0
    exchange_s: float = 0.0
    finish_s: float = 0.0
    launched_at: float = 0.0

    @property
    def compression(self) -> float:
        """Dense bytes over sent bytes; 1 when nothing is sent at all (one worker)."""
        return self.dense_bytes / self.sent_bytes if self.sent_bytes else 1.0

    def note_taken(self, select_s: float, *, numel: int, k: int, kept: int, dense_bytes: int) -> None:
        """Count one selection that took ``select_s``."""
        self.select_s += select_s
        self.numel += numel
        self.k += k
        self.kept += kept
        self.dense_bytes += dense_bytes

    def note_arrived(self, left: float, sent_bytes: int) -> float:
        """Count one exchange whose message left at ``left``."""
        now = time.perf_counter()
        with _COUNTING:
            self.exchange_s += now - left
            self.sent_bytes += sent_bytes
        return now

    def note_finished(self, arrived: float) -> None:
        """Count the work since a message arrived."""
        with _COUNTING:
            self.finish_s += time.perf_counter() - arrived
