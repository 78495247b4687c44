"""What a step sent and how long it took, as measured on this worker; and what may watch gradients on their way."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # whoever reads measurements alone need not wait for torch
    from torch import Tensor

    from gaussiank.layout import Layout
    from gaussiank.sparse import SparseGradient

_COUNTING = threading.Lock()  # messages arrive on threads of the backend


@dataclass
class Metrics:
    """Measurements of one training step on one worker.

    Attributes:
        step: number of the step, 0 the first.
        density: density asked for.
        calls: exchanges begun: one for each DDP bucket or FSDP module, one for all of them with ``scope="model"``.
        numel: entries of all gradients that went through the hook.
        k: entries asked for.
        kept: entries chosen.
        sent_bytes: bytes that this worker put on the wire.
        dense_bytes: what a ring all-reduce of the same gradients would have put there.
        select_s: seconds in accumulation, selection and encoding; they delay backward. A collective of several
            messages encodes in a thread, beside backward: that is in ``exchange_s``. On an accelerator this,
            ``exchange_s`` and ``finish_s`` are seconds in which the host enqueued that work, not those of the device.
        exchange_s: seconds from the start of each exchange to the arrival of its last message, summed over exchanges;
            part of them hides behind backward.
        finish_s: seconds in decoding and averaging.
        launched_at: ``time.perf_counter()`` when the last message was started.
    """

    step: int = 0
    density: float = 1.0
    calls: int = 0
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
        self.calls += 1
        self.select_s += select_s
        self.numel += numel
        self.k += k
        self.kept += kept
        self.dense_bytes += dense_bytes

    def note_received(self, left: float, sent_bytes: int, arrived: float | None = None) -> None:
        """Count one exchange whose message left at ``left``, and the work since it ``arrived``; None for none."""
        now = time.perf_counter()
        with _COUNTING:
            self.exchange_s += (arrived or now) - left
            self.finish_s += now - (arrived or now)
            self.sent_bytes += sent_bytes


class Residuals(Protocol):
    """What an observer may ask of the error feedback."""

    def residuals(self, wanted: Layout, /) -> Tensor:
        """Return a copy of the committed residuals of a layout's parameters, as it lays them out: ``[numel]``."""
        ...

    def settle(self) -> bool:
        """End the step: commit its residuals. Only between steps."""
        ...


class Observer(Protocol):
    """Watch one worker's vectors step after step, and change none of them.

    The order within a step: ``begin``; then for each bucket ``taking``, ``taken`` and, some time later and perhaps in
    another thread, ``arrived``. The accumulated vector is not passed on, because a fused selection never holds it: it
    is the residual before the step plus the gradient or, with momentum correction, the residual after the step with
    what was taken in its place, as long as no collective puts entries of other workers there.
    """

    @property
    def settings(self) -> Mapping[str, object]:
        """What must be the same on every worker; compared when the model is compressed."""
        ...

    def attach(
        self,
        config: Mapping[str, object],
        numels: Mapping[str, int],
        residuals: Residuals,
        group: Any,
    ) -> None:
        """Learn the compression's settings, its parameters, where its residuals are, and the process group."""
        ...

    def begin(self, step: int, density: float) -> None:
        """Learn that the residuals of the last step are committed, and that another step begins."""
        ...

    def taking(self, layout: Layout, grads: Sequence[Tensor]) -> None:
        """Look at local gradients before anything is taken from them. They must not be modified or kept."""
        ...

    def taken(self, layout: Layout, k: int, sparse: SparseGradient | None) -> None:
        """Look at what was chosen; None when everything was."""
        ...

    def arrived(self, layout: Layout, grads: Sequence[Tensor]) -> None:
        """Look at the mean over workers. It must not be modified or kept."""
        ...
