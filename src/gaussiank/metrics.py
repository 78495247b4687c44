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
        began_at: the same, when the first bucket came.
        arrived_at: the same, when the last mean was there.
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
    began_at: float = 0.0
    arrived_at: float = 0.0

    @property
    def compression(self) -> float:
        """Dense bytes over sent bytes; 1 when nothing is sent at all (one worker)."""
        return self.dense_bytes / self.sent_bytes if self.sent_bytes else 1.0

    @property
    def exposed_s(self) -> float:
        """Seconds from the start of the last message to the last mean: what no backward was left to hide."""
        return max(0.0, self.arrived_at - self.launched_at) if self.launched_at else 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the measurements as plain numbers, under names that stay.

        Example:
            >>> list(Metrics().as_dict())[:4], list(Metrics().as_dict())[4:8]
            (['step', 'density', 'calls', 'numel'], ['k', 'kept', 'sent_bytes', 'dense_bytes'])
            >>> list(Metrics().as_dict())[8:]
            ['compression', 'select_s', 'exchange_s', 'finish_s', 'exposed_s']
        """
        return {name: getattr(self, name) for name in _NAMES}

    def write(self, writer: Any, step: int | None = None, prefix: str = "gaussiank/") -> None:
        """Hand the measurements to a writer of TensorBoard, or to a run of Weights & Biases, in one line of a loop.

        Args:
            writer: anything with ``add_scalar(name, value, step)``, as TensorBoard's ``SummaryWriter``, or with
                ``log(values, step=)``, as ``wandb`` and its runs.
            step: they are written at; None for their own.
            prefix: of every name.

        Raises:
            ValueError: the writer has neither.

        Example:
            >>> class Run:
            ...     def log(self, values, step):
            ...         print(step, values["gaussiank/kept"])
            >>> Metrics(step=7, kept=3).write(Run())
            7 3
        """
        values = {f"{prefix}{name}": value for name, value in self.as_dict().items()}
        step = self.step if step is None else step
        if hasattr(writer, "add_scalar"):
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        elif hasattr(writer, "log"):
            writer.log(values, step=step)
        else:
            raise ValueError(
                f"writer must have add_scalar or log, got {type(writer).__name__}. Give a SummaryWriter of "
                "torch.utils.tensorboard, a run of wandb, or take metrics.as_dict()."
            )

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
            self.arrived_at = max(self.arrived_at, now)


_NAMES = (
    "step", "density", "calls", "numel", "k", "kept", "sent_bytes", "dense_bytes", "compression",
    "select_s", "exchange_s", "finish_s", "exposed_s",
)  # fmt: skip
_HIDDEN = 0.05  # of a step, at most, that the exchange may outlast backward and count as hidden
_SAME = 0.02  # share by which two times differ at least, to be told apart


@dataclass
class Totals:
    """What all steps of this process have sent, and how long they took: for ``Compression.summary``.

    Attributes:
        steps: exchanges of a whole gradient.
        sent_bytes: bytes that this worker put on the wire.
        dense_bytes: what ring all-reduces would have put there.
        calls: exchanges of a part.
        timed: steps whose length is known: from their first bucket to that of the next one.
        hidden: those of them whose exchange ended with backward, or within 5 % of the step after it.
        step_s: seconds of those that are timed.
        compress_s: of these, in selection and encoding, which delay backward.
        exposed_s: of these, waiting for the last mean.
        overlap_s: of these, from the first bucket to the last message.
    """

    steps: int = 0
    sent_bytes: int = 0
    dense_bytes: int = 0
    calls: int = 0
    timed: int = 0
    hidden: int = 0
    step_s: float = 0.0
    compress_s: float = 0.0
    exposed_s: float = 0.0
    overlap_s: float = 0.0

    def add(self, measured: Metrics, next_at: float | None = None) -> None:
        """Add a step; ``next_at``: when the next one began, None where none has."""
        if not measured.calls:
            return
        self.steps += 1
        self.sent_bytes += measured.sent_bytes
        self.dense_bytes += measured.dense_bytes
        self.calls += measured.calls
        if next_at is None or not measured.launched_at:
            return
        step_s = next_at - measured.began_at
        self.timed += 1
        self.hidden += measured.exposed_s <= _HIDDEN * step_s
        self.step_s += step_s
        self.compress_s += measured.select_s
        self.exposed_s += measured.exposed_s
        self.overlap_s += measured.launched_at - measured.began_at

    def dense_ratio(self, bytes_per_s: float, latency_s: float, world_size: int) -> float:
        """Predict how long a dense step would take, over how long a step took.

        A dense step does all that a step does but selection and what was waited for. Its exchange hides behind
        backward as far as that is long, all but its last bucket.

        Args:
            bytes_per_s: of the link, in one direction.
            latency_s: of a message.
            world_size: number of workers.
        """
        if not self.timed or not self.step_s:
            return 1.0
        calls = self.calls / self.steps
        wire_s = self.dense_bytes / self.steps / bytes_per_s + calls * 2 * (world_size - 1) * latency_s
        step_s, compress_s, exposed_s, overlap_s = (
            one / self.timed for one in (self.step_s, self.compress_s, self.exposed_s, self.overlap_s)
        )
        waits_s = max(wire_s - max(0.0, overlap_s - compress_s), wire_s / calls)
        return (max(0.0, step_s - compress_s - exposed_s) + waits_s) / step_s

    def text(self, dense_ratio: float | None = None) -> str:
        """Write the totals as a sentence.

        Args:
            dense_ratio: time of a dense step over that of a step, None where that is not known.

        Example:
            >>> totals = Totals(steps=100, sent_bytes=120_000_000, dense_bytes=86_000_000_000, timed=100, hidden=97)
            >>> for part in totals.text(3.1).split("; "):
            ...     print(part)
            100 steps: sent 0.12 GB instead of 86 GB
            the exchange hid behind backward in 97 % of steps
            dense would have been 3.1x slower.
            >>> totals.text(0.96).rpartition("; ")[2]
            'dense would have been 4 % faster: take the hook out.'
        """
        parts = [f"{self.steps} steps: sent {_gigabytes(self.sent_bytes)} instead of {_gigabytes(self.dense_bytes)}"]
        if self.timed:
            parts.append(
                f"the exchange hid behind backward in {self.hidden / self.timed:.0%} of steps".replace("%", " %")
            )
        if dense_ratio is not None:
            parts.append(f"dense would have been {_comparison(dense_ratio, 'the hook')}")
        return "; ".join(parts) + "."


@dataclass
class RoundTotals:
    """What the local steps of this process have sent, and how long they took: for ``LocalSteps.summary``.

    Args:
        dense_bytes: what one ring all-reduce of the whole gradient would put on the wire.
        buckets: messages that it would be sent in.
        world_size: number of workers.

    Attributes:
        steps: inner steps.
        rounds: that have ended, of any fragment.
        sent_bytes: bytes that this worker put on the wire.
        timed: steps whose length is known: all but the first.
        step_s: seconds of those that are timed.
        waited_s: of these, in which training stood still for a round.
    """

    dense_bytes: int
    buckets: int
    world_size: int
    steps: int = 0
    rounds: int = 0
    sent_bytes: int = 0
    timed: int = 0
    step_s: float = 0.0
    waited_s: float = 0.0
    _last_at: float | None = None

    def count(self, steps: int, ended: Sequence[tuple[int, float]]) -> None:
        """Count ``steps`` inner steps that end now, and the rounds that ended with them: bytes, and seconds waited."""
        now = time.perf_counter()
        self.steps += steps
        self.rounds += len(ended)
        self.sent_bytes += sum(sent_bytes for sent_bytes, _ in ended)
        if self._last_at is not None:
            self.timed += steps
            self.step_s += now - self._last_at
            self.waited_s += sum(waited_s for _, waited_s in ended if waited_s == waited_s)  # NaN of one resumed
        self._last_at = now

    def dense_ratio(self, bytes_per_s: float, latency_s: float) -> float | None:
        """Predict how long a step with a dense exchange would take, over how long a step took; None before two steps.

        A heuristic: such an exchange hides behind backward, two thirds of a step's computing, all but its last bucket.

        Args:
            bytes_per_s: of the link, in one direction.
            latency_s: of a message.
        """
        if not self.timed or not self.step_s:
            return None
        alone_s = max(0.0, self.step_s - self.waited_s) / self.timed
        wire_s = self.dense_bytes / bytes_per_s + self.buckets * 2 * (self.world_size - 1) * latency_s
        waits_s = max(wire_s - 2 / 3 * alone_s, wire_s / self.buckets)
        return (alone_s + waits_s) * self.timed / self.step_s

    def text(self, dense_ratio: float | None = None) -> str:
        """Write the totals as a sentence.

        Args:
            dense_ratio: time of a step with a dense exchange over that of a step, None where that is not known.

        Example:
            >>> totals = RoundTotals(86_000_000, 4, 2, steps=100, rounds=10, sent_bytes=3_000_000, timed=99, step_s=9.0)
            >>> totals.text(3.1)[:50]
            '100 steps, 10 rounds: sent 3 MB instead of 8.6 GB;'
        """
        dense = _gigabytes(self.dense_bytes * self.steps)
        parts = [f"{self.steps} steps, {self.rounds} rounds: sent {_gigabytes(self.sent_bytes)} instead of {dense}"]
        if self.step_s:
            parts.append(f"training stood still for {100 * self.waited_s / self.step_s:.0f} % of the time")
        if dense_ratio is not None:
            parts.append(f"dense at every step would have been {_comparison(dense_ratio, 'LocalSteps')}")
        return "; ".join(parts) + "."


def bytes_per_s(mbit: float) -> float:
    """Return a link's rate in bytes a second.

    Raises:
        ValueError: it is not above 0.
    """
    if not mbit > 0:
        raise ValueError(f"mbit must be above 0, got {mbit}. Give the rate of the link, 100 for example.")
    return mbit * 125e3


def _gigabytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.1 * scale:
            return f"{size / scale:.2g} {unit}" if size < 100 * scale else f"{size / scale:,.0f} {unit}"
    return f"{size} bytes"


def _comparison(ratio: float, what: str) -> str:
    if ratio >= 2:
        return f"{ratio:.1f}x slower"
    if ratio > 1 + _SAME:
        return f"{100 * (ratio - 1):.0f} % slower"
    if ratio < 1 - _SAME:
        return f"{100 * (1 - ratio):.0f} % faster: take {what} out"
    return f"as fast: take {what} out, unless the link is shared"


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
