"""How gradients are exchanged in the network benchmark: DDP, its hooks, ours, and the paper's way."""

# No `from __future__ import annotations` here: DDP reads the annotations of the hook as types.

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from gaussiank import AdamRows, Compression, LocalSteps, compress
from gaussiank.comm import all_reduce_bytes, then
from gaussiank_lab.bench.net.methods import DDP, PAPER, NetMethod, Rows
from gaussiank_lab.bench.operators import PEERS
from gaussiank_lab.train.local import SYNC_EVERY, DiLoCo, Local, PowerSGD, local_steps
from gaussiank_lab.train.powersgd import ONE_BUCKET_MB

# all_gather_into_tensor has had this name since torch 2.13, which deprecates the old one
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_SAME_COUNT = ("torch.topk",)


class PaperExchange:
    """Select with error feedback on the gradients of a whole model, and average what all workers selected.

    Where counts differ, they are gathered first and rows are filled up to the longest; repeated indices are added up.
    The published code cuts unequal rows wrongly and drops repeated indices: that would cost the same time.

    Args:
        rule: key of ``PEERS``.
        density: share of entries to send.

    Attributes:
        select_s: seconds of joining, accumulation and selection in the last step.
        exchange_s: seconds of its messages.
        finish_s: seconds of adding up and handing out.
        sent_bytes: bytes that this worker sent in it.
        kept: entries that it chose.
    """

    def __init__(self, rule: str, density: float) -> None:
        self._choose, self._same_count = PEERS[rule].choose, rule in _SAME_COUNT
        self._density = density
        self._world_size = dist.get_world_size()
        self._random = torch.Generator().manual_seed(dist.get_rank())
        self._residual: Tensor | None = None
        self.select_s = self.exchange_s = self.finish_s = 0.0
        self.sent_bytes = self.kept = 0

    @torch.no_grad()
    def reduce(self, grads: Sequence[Tensor]) -> None:
        """Replace gradients, of any shapes, by the mean of all workers' selections."""
        began = time.perf_counter()
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        if self._residual is None:
            self._residual = torch.zeros_like(flat)
        accumulated = self._residual.add_(flat)
        k = max(1, round(self._density * flat.numel()))
        indices = self._choose(accumulated, k, self._random)
        values = accumulated[indices]
        accumulated[indices] = 0
        taken = time.perf_counter()
        self.sent_bytes = 0
        all_indices, all_values = self._gather(indices.int(), values)
        arrived = time.perf_counter()
        flat.zero_().index_add_(0, all_indices.long(), all_values).div_(self._world_size)
        start = 0
        for grad in grads:
            grad.copy_(flat[start : start + grad.numel()].view_as(grad))
            start += grad.numel()
        self.kept = indices.numel()
        self.select_s, self.exchange_s = taken - began, arrived - taken
        self.finish_s = time.perf_counter() - arrived

    def _gather(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices and values of all workers, end to end; padding adds zeros to the first entry."""
        if not self._same_count:
            longest = int(self._gathered(torch.tensor([indices.numel()])).max())
            indices, values = (
                torch.cat([part, part.new_zeros(longest - part.numel())]) for part in (indices, values)
            )  # fmt: skip
        return self._gathered(indices), self._gathered(values)

    def _gathered(self, row: Tensor) -> Tensor:
        rows = row.new_empty(self._world_size * row.numel())
        _all_gather(rows, row)
        self.sent_bytes += (self._world_size - 1) * row.numel() * row.element_size()
        return rows


TIMEOUT_S = 120.0
_Hook = Callable[[Any, GradBucket], torch.futures.Future[Tensor]]


class Spent(NamedTuple):
    """What the exchange of one step took on this worker; None where nobody can tell.

    Attributes:
        select_s: seconds of accumulation, selection and encoding, or of rounding; encoding in a thread is not in it.
        exchange_s: seconds from the start of each exchange to its last message, summed over exchanges.
        finish_s: seconds of decoding and averaging.
        sent_bytes: bytes that this worker should have put on the wire.
        kept: entries chosen.
        dense: whether the whole gradient was sent.
    """

    select_s: float | None
    exchange_s: float | None
    finish_s: float | None
    sent_bytes: int
    kept: int
    dense: bool


class Carrier(ABC):
    """Connect a model with the other workers.

    Attributes:
        module: what the training loop calls.
        clips: whether it clips gradients itself, before they are exchanged.
    """

    module: nn.Module
    clips = False

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Set up what may measure the link; comes once, before the first step."""
        return

    def after_backward(self) -> None:
        """Exchange what backward itself has not."""
        return

    def after_step(self) -> None:
        """Exchange what the optimizer did."""
        return

    @abstractmethod
    def spent(self) -> Spent:
        """Return what the last step took."""


class Alone(Carrier):
    """Exchange nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.module = model

    def spent(self) -> Spent:
        """Nothing."""
        return Spent(0.0, 0.0, 0.0, 0, 0, dense=False)


def _wrapped(model: nn.Module, bucket_cap_mb: float | None = None) -> DistributedDataParallel:
    """Wrap as one who looks at the clock does: gradients lie in the buckets, so DDP copies nothing."""
    return DistributedDataParallel(model, bucket_cap_mb=bucket_cap_mb, gradient_as_bucket_view=True)


class PlainDdp(Carrier):
    """Let DDP all-reduce, by itself or with one of its hooks."""

    def __init__(self, model: nn.Module, method: NetMethod) -> None:
        name, low_rank = method.name, method.special if isinstance(method.special, PowerSGD) else None
        self.module = self._ddp = _wrapped(model, None if low_rank is None else ONE_BUCKET_MB)
        self._world_size = dist.get_world_size()
        self._numel = sum(parameter.numel() for parameter in model.parameters())
        self._clock = _PhaseClock(default_hooks.allreduce_hook, dist.group.WORLD)
        if low_rank is not None:
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=low_rank.rank, start_powerSGD_iter=2)
            self._clock = _PhaseClock(powerSGD_hook.powerSGD_hook, state)
        elif name != DDP:
            narrow = {"ddp-fp16": default_hooks.fp16_compress_hook, "ddp-bf16": default_hooks.bf16_compress_hook}
            self._clock = _PhaseClock(narrow[name], dist.group.WORLD)
        self._name, self._low_rank = name, low_rank is not None
        self._sent_numel = 0

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Register the hook."""
        if self._name != DDP:
            self._ddp.register_comm_hook(self._clock, _timed)

    def spent(self) -> Spent:
        """Count a ring's bytes of what the hook reduces."""
        numel, self._clock.taken_s, taken_s = self._numel, 0.0, self._clock.taken_s
        if self._low_rank:
            after = self._clock.state.compression_stats()[2]
            numel, self._sent_numel = after - self._sent_numel, after
        dtype = torch.float16 if self._name in ("ddp-fp16", "ddp-bf16") else torch.float32
        sent_bytes = all_reduce_bytes(torch.empty(numel, dtype=dtype, device="meta"), self._world_size)
        return Spent(None, None if self._name == DDP else taken_s, None, sent_bytes, numel, dense=True)


class _PhaseClock:
    """A hook of torch's, and the seconds that its messages take."""

    def __init__(self, hook: _Hook, state: Any) -> None:
        self.hook, self.state = hook, state
        self.taken_s = 0.0


def _timed(state: _PhaseClock, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    began = time.perf_counter()

    def arrived(done: torch.futures.Future[Tensor]) -> Tensor:
        tensor = done.value()
        state.taken_s += time.perf_counter() - began
        return tensor

    return then(state.hook(state.state, bucket), arrived)


class OurExchange(Carrier):
    """Compress with this library, bucket by bucket."""

    clips = True

    def __init__(self, model: nn.Module, method: NetMethod, density: float, clip_norm: float | None) -> None:
        self.module = self._ddp = _wrapped(model)
        self._settings: dict[str, Any] = {
            "density": density,
            "compressor": method.compressor,
            "collective": method.collective,
            "wire": method.wire,
        }
        if isinstance(method.special, Rows):
            self._settings = {"precondition": AdamRows(), **vars(method.special)}
        self._settings["clip_norm"] = clip_norm
        self._compression: Compression | None = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Register the hook; ``auto`` measures the link here."""
        self._compression = compress(self._ddp, timeout_s=TIMEOUT_S, **self._settings)

    def spent(self) -> Spent:
        """Return the metrics of the step."""
        assert self._compression is not None  # attached
        found = self._compression.metrics
        return Spent(
            found.select_s, found.exchange_s, found.finish_s, found.sent_bytes, found.kept,
            dense=found.kept == found.numel,
        )  # fmt: skip


class Paper(Carrier):
    """Select once on the whole model when backward has ended, as the paper had it."""

    def __init__(self, model: nn.Module, name: str, density: float) -> None:
        self.module = model
        self._parameters = list(model.parameters())
        self._exchange = PaperExchange(PAPER[name], density)

    def after_backward(self) -> None:
        """Exchange all gradients."""
        self._exchange.reduce([one.grad for one in self._parameters if one.grad is not None])

    def spent(self) -> Spent:
        """Return what the exchange noted."""
        found = self._exchange
        return Spent(
            found.select_s, found.exchange_s, found.finish_s, found.sent_bytes, found.kept, dense=False
        )  # fmt: skip


class Seldom(Carrier):
    """Train alone, and exchange every so many steps what the optimizer did."""

    def __init__(self, model: nn.Module, method: Local | DiLoCo) -> None:
        self.module = model
        self._method = method
        self._local: LocalSteps | None = None
        self._sent_bytes = 0
        self._ended = False

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Begin at rank 0's weights."""
        self._local = local_steps(
            self._method, self.module, optimizer, sync_every=SYNC_EVERY, collective="allgather", timeout_s=TIMEOUT_S
        )

    def after_step(self) -> None:
        """Count the step; begin and end the rounds whose turn it is."""
        assert self._local is not None  # attached
        self._sent_bytes = self._local.sent_bytes
        self._ended = self._local.step()

    def spent(self) -> Spent:
        """Return what the rounds that ended in it have sent; what they took is spread over steps."""
        assert self._local is not None
        kept = self._local.metrics.kept if self._ended else 0
        return Spent(None, None, None, self._local.sent_bytes - self._sent_bytes, kept, dense=False)


def carrier_of(method: NetMethod, model: nn.Module, density: float, clip_norm: float | None) -> Carrier:
    """Make the carrier of a method; every worker calls it with a model of the same weights."""
    if isinstance(method.special, (Local, DiLoCo)):
        return Seldom(model, method.special)
    if method.family == "alone":
        return Alone(model)
    if method.family == "ddp":
        return PlainDdp(model, method)
    if method.family == "paper":
        return Paper(model, method.name, density)
    return OurExchange(model, method, density, clip_norm)
