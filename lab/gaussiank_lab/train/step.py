"""One optimizer step on this worker, the state that it changes, and what judges and measures it."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gaussiank import AdamWarning, Compression, LocalSteps, compress
from gaussiank.autotune import Auto
from gaussiank.comm import all_reduce_bytes
from gaussiank.compressors import parse_compressor
from gaussiank.metrics import Metrics, Observer
from gaussiank_lab.data import Batch, Data
from gaussiank_lab.report.records import STEP_NUMBERS, STEP_TIMES
from gaussiank_lab.train.config import PrecisionName, TrainConfig
from gaussiank_lab.train.local import SYNC_EVERY, DiLoCo, Local, PowerSGD, local_method, local_steps, powersgd_method
from gaussiank_lab.train.powersgd import PowerSGDExchange


class Precision:
    """Run a model under autocast, and scale its loss where gradients would underflow.

    Args:
        name: ``fp32``, ``bf16`` or ``fp16``.
        device: of the model.

    Attributes:
        scaler: torch's ``GradScaler``; enabled for float16 alone, and else it does nothing.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        narrow = torch.float16 if name == "fp16" else torch.bfloat16
        self._autocast = torch.autocast(device.type, dtype=narrow, enabled=name != "fp32")
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def run(self, model: Any, inputs: tuple[Tensor, ...]) -> Any:
        """Return what ``model`` makes of ``inputs``, in float32, so that the loss is too."""
        with self._autocast:
            return _widened(model(*inputs))

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Let the optimizer take its step unless a gradient is infinite or NaN; returns whether it did."""
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before  # it backs off after a skipped step alone


def _widened(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.is_floating_point() else output
    return tuple(_widened(part) for part in output) if isinstance(output, (tuple, list)) else output


def weight_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a model's weights, which starts from them.

    Args:
        model: not modified.
        decay: in (0, 1); a larger one remembers longer.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 1.0)
        >>> average = weight_average(model, decay=0.5)
        >>> _ = nn.init.constant_(model.weight, 3.0)
        >>> average.update_parameters(model)
        >>> average.module.weight.item()
        2.0
    """
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.n_averaged += 1  # or the first update would forget where it starts from
    return average


class _HandOver(torch.autograd.Function):
    """A scalar whose gradient for each parameter is a tensor that is known already."""

    @staticmethod
    def forward(ctx: Any, grads: Sequence[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.grads = grads
        return parameters[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return (None, *ctx.grads)


class GradientCarrier(nn.Module):
    """Stand between a model and DDP, so that DDP exchanges gradients made before.

    DDP sends a bucket as soon as it is full, long before the norm of the whole gradient is known. So the model's own
    backward runs outside DDP; its gradient is clipped; then DDP's backward carries it, bit for bit, through the hook.
    This costs the overlap of sending with backward.

    Args:
        model: whose parameters are exchanged; it keeps its buffers in step too.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        """Take every parameter's gradient away, and return a scalar whose backward brings it back."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        grads = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        carried: Tensor = _HandOver.apply(grads, *parameters)  # type: ignore[no-untyped-call]  # torch gives apply no types
        return carried


def clip_local(model: nn.Module, max_norm: float) -> None:
    """Scale a model's gradients down until their joint norm is ``max_norm`` at most; a smaller one stays as it is.

    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1.
    """
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)


class Measurements:
    """Collect a row for each step on every worker, and average the rows over workers a few at a time.

    Within a process group.
    """

    def __init__(self) -> None:
        self._local: list[list[float]] = []
        self._pending: list[dict[str, Any]] = []
        self._averaged: list[list[float]] = []  # k first, then STEP_NUMBERS

    def __len__(self) -> int:
        """Return the steps that are averaged."""
        return len(self._averaged)

    @property
    def waiting(self) -> int:
        """Steps that are not averaged yet."""
        return len(self._local)

    def add(self, record: dict[str, Any], numbers: Mapping[str, float]) -> None:
        """Note a step: its record, and this worker's ``STEP_NUMBERS``, whose averages the record lacks yet."""
        self._pending.append(record)
        self._local.append([numbers[name] for name in STEP_NUMBERS])

    def average(self) -> list[dict[str, Any]]:
        """Return the records since the last call, with their averages; every worker calls it."""
        if not self._local:
            return []
        table = torch.tensor(self._local, dtype=torch.float64)
        dist.all_reduce(table)
        records = self._pending
        for record, row in zip(records, (table / dist.get_world_size()).tolist(), strict=True):
            record.update(zip(STEP_NUMBERS, row, strict=True))
            self._averaged.append([record["k"], *row])
        self._local, self._pending = [], []
        return records

    def closing(self) -> dict[str, Any]:
        """Sum all steps up: mean traffic, and the median of each time."""
        columns = dict(zip(("k", *STEP_NUMBERS), zip(*self._averaged, strict=True), strict=True))
        sent, dense = statistics.fmean(columns["sent_bytes"]), statistics.fmean(columns["dense_bytes"])
        return {
            "kept_over_k": sum(columns["kept"]) / max(1, sum(columns["k"])),
            "sent_bytes": sent,
            "dense_bytes": dense,
            "compression": dense / sent if sent else 1.0,
            **{key: statistics.median(columns[key]) for key in STEP_TIMES},
        }

    def state(self) -> Tensor:
        """Return the averages, float64 ``[steps, 1 + columns]``, for a checkpoint."""
        return torch.tensor(self._averaged, dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        """Go on from saved averages."""
        self._averaged = state.tolist()


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Data, batch_size: int, device: torch.device, precision: Precision
) -> dict[str, float]:
    """Return loss and metric over the whole test set, the same on every worker; within a process group.

    Args:
        model: made to run as in use, and put back to training. Buffers become those of rank 0, as in DDP.
        data: whose test set is taken.
        batch_size: examples that the model is given at once.
        device: of the model.
        precision: that the model computes in.
    """
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)  # running statistics differ between workers
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(dist.get_rank() * batch_size, len(data.test), batch_size * dist.get_world_size()):
        chosen = torch.arange(start, min(start + batch_size, len(data.test)))
        batch = data.test.batch(chosen).to(device)
        sums += data.task.score(precision.run(model, data.test.prepare(batch.inputs)), batch.targets)
    dist.all_reduce(sums)
    model.train()
    return data.task.evaluation(sums)


class StepTimes(NamedTuple):
    """What a step cost on this worker.

    Attributes:
        loss: of its batches, their mean.
        step_s: seconds in all.
        communicate_s: seconds after the last message had left: waiting for messages and unpacking them.
    """

    loss: float
    step_s: float
    communicate_s: float


class Stepper:
    """Hold a model, its optimizer and its exchange, and take steps with them.

    Args:
        config: settings of the run.
        method: which of its methods.
        data: loaded for the model.
        epoch_steps: optimizer steps in an epoch.
        recorder: watches the gradients, or None.

    Attributes:
        model: the bare model.
        average: the moving average of its weights, or None.
        skipped: steps that were not taken, because a float16 gradient was not finite.
        rounds: of local steps that ended in the last step, as this worker saw them.
    """

    def __init__(
        self, config: TrainConfig, method: str, data: Data, epoch_steps: int, recorder: Observer | None = None
    ) -> None:
        self._config, self._data = config, data
        self._device = torch.device(config.device)
        torch.manual_seed(config.seed)
        self.model: nn.Module = config.spec.build(data.outputs).to(self._device)
        torch.manual_seed((config.seed << 16) + 1 + dist.get_rank())  # every worker drops out its own activations
        self.average = None if config.ema is None else weight_average(self.model, config.ema)
        self.precision = Precision(config.precision, self._device)
        self._taken = self._sent_dense = 0
        self.skipped = 0
        self._exchange: DistributedDataParallel | None = None
        self._local: LocalSteps | None = None
        self._compression: Compression | None = None
        self._low_rank: PowerSGDExchange | None = None
        self._metrics = Metrics()
        self.rounds: list[dict[str, Any]] = []
        if (low_rank := powersgd_method(method)) is not None:
            self._exchange_low_rank(low_rank)
        elif (seldom := local_method(method)) is not None:
            self._exchange_seldom(seldom)
        else:
            self._exchange_often(method, epoch_steps, recorder)

    def _exchange_seldom(self, method: Local | DiLoCo) -> None:
        config = self._config
        self._clips, self._sends_all = config.clip_grad is not None, False
        self._optimizer = self._make_optimizer(config.optimizer, config.momentum)
        every = config.sync_every or SYNC_EVERY
        self._local = local_steps(
            method, self.model, self._optimizer,
            sync_every=every, collective=config.collective, timeout_s=config.timeout_s,
        )  # fmt: skip
        self._dense_bytes = sum(
            all_reduce_bytes(one.detach(), dist.get_world_size()) for one in self.model.parameters()
        )

    def _exchange_low_rank(self, method: PowerSGD) -> None:
        config = self._config
        self._clips, self._sends_all = config.clip_grad is not None, True
        self._low_rank = PowerSGDExchange(GradientCarrier(self.model) if self._clips else self.model, method.rank)
        self._exchange = self._low_rank.module
        self._optimizer = self._make_optimizer(config.optimizer, config.momentum)

    def _exchange_often(self, method: str, epoch_steps: int, recorder: Observer | None) -> None:
        config = self._config
        self._clips = config.clip_grad is not None
        self._exchange = DistributedDataParallel(GradientCarrier(self.model) if self._clips else self.model)
        compressor = parse_compressor(method)
        self._sends_all = compressor.sends_all
        correction, rows = config.correction(compressor), config.preconditioner(compressor)
        self._compression = compress(
            self._exchange,
            config.schedule(epoch_steps),
            compressor=compressor,
            scope=config.scope,
            momentum=correction,
            precondition=rows,
            max_bytes=None if compressor.sends_all else config.max_bytes,
            scaler=self.precision.scaler if self.precision.scaler.is_enabled() else None,
            collective=config.collective,
            wire=config.wire,
            timeout_s=config.timeout_s,
            recorder=recorder,
        )
        if dist.get_rank() > 0:
            warnings.filterwarnings("ignore", category=AdamWarning)  # rank 0 says it for all
        self._optimizer = self._make_optimizer(
            "sgd" if rows else config.optimizer, 0.0 if correction or rows else config.momentum
        )

    def _make_optimizer(self, name: str, momentum: float) -> torch.optim.Optimizer:
        config, parameters = self._config, self.model.parameters()
        if name == "adamw":
            return torch.optim.AdamW(parameters, config.lr, betas=(momentum, 0.999), weight_decay=config.weight_decay)
        return torch.optim.SGD(parameters, config.lr, momentum=momentum, weight_decay=config.weight_decay)

    @property
    def metrics(self) -> Metrics:
        """What the last step sent."""
        return self._metrics if self._compression is None else self._compression.metrics

    @property
    def finding(self) -> str:
        """What ``auto`` found out about the link; empty with other collectives."""
        collective = None if self._compression is None else self._compression.collective
        if not isinstance(collective, Auto) or self._sends_all:
            return ""
        return f"{collective.finding}; {self._sent_dense} of {self._taken} steps were dense"

    def take(self, lr: float, batches: Sequence[Batch], *, last: bool = False) -> StepTimes:
        """Take a step on the mean loss of some batches.

        Args:
            lr: learning rate of this step.
            batches: as many as are accumulated.
            last: no step follows.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        started = self._now()
        loss = self._backward(batches)
        back = self._now()
        if self._low_rank is not None:
            self._metrics = self._low_rank.measured()
        if self._config.clip_mean is not None:
            self.precision.scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_mean)
        if not self.precision.step(self._optimizer):
            self.skipped += 1
        elif self.average is not None:
            self.average.update_parameters(self.model)
        if self._local is not None:
            back = self._now()
            self._step_locally(self._local, last=last)
        ended = self._now()
        self._taken += 1
        self._sent_dense += self.metrics.kept == self.metrics.numel
        communicate_s = ended - back if self._local else back - self.metrics.launched_at
        return StepTimes(loss.item(), ended - started, communicate_s)

    def _step_locally(self, local: LocalSteps, *, last: bool) -> None:
        """Count a step, and measure what it sent, beside what DDP would have; the last one exchanges in any case."""
        before, ended = local.sent_bytes, local.step()
        rounds = local.ended
        if last:
            local.finish()
            rounds += local.ended
        waiting = {"residual_norm": local.residual_norm()} if rounds else {}
        self.rounds = [{**one._asdict(), **waiting} for one in rounds]
        exchanged = local.metrics if ended or last else Metrics(density=0.0)
        self._metrics = replace(
            exchanged,
            step=local.steps - 1,
            select_s=0.0,  # it is part of what the step waited for
            sent_bytes=local.sent_bytes - before,
            dense_bytes=self._dense_bytes,
        )

    def judged(self) -> contextlib.AbstractContextManager[None]:
        """Let the model have the weights that are judged: the same on every worker."""
        return contextlib.nullcontext() if self._local is None else self._local.at_agreed()

    def _backward(self, batches: Sequence[Batch]) -> Tensor:
        """Leave the exchanged gradient in the parameters; returns this worker's loss."""
        self._optimizer.zero_grad()
        total: Tensor | None = None
        for number, batch in enumerate(batches, 1):
            # its gradient waits for those of the others
            alone = self._exchange is not None and number < len(batches) and not self._clips
            with self._exchange.no_sync() if self._exchange and alone else contextlib.nullcontext():
                loss = self._loss(batch) / len(batches)
                self.precision.scaler.scale(loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
        if self._config.clip_grad is not None:
            clip_local(self.model, self._config.clip_grad * self.precision.scaler.get_scale())
            if self._exchange is not None:
                self._exchange().backward()
        assert total is not None  # a step has a batch
        return total

    def _loss(self, batch: Batch) -> Tensor:
        batch = batch.to(self._device)
        inputs = self._data.train.prepare(batch.inputs)
        output = self.precision.run(self.model if self._clips else self._exchange or self.model, inputs)
        return self._data.task.loss(output, batch.targets)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    # ------------------------------------------------------------------ saving

    def own_state(self) -> dict[str, Any]:
        """Return what belongs to this worker alone."""
        if self._local is not None:
            return self._local.state_dict(inner=True)
        assert self._compression is not None  # one of them: PowerSGD is not saved
        return self._compression.state_dict()

    def shared_state(self) -> dict[str, Any]:
        """Return what is the same on every worker, or is taken from rank 0, as DDP takes a model's buffers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict() or None,
            "average": self._averages() if self.average else None,
            "skipped": self.skipped,
        }

    def _averages(self) -> dict[str, Tensor]:
        """Return the averaged weights by parameter."""
        assert self.average is not None
        return {name: parameter.detach() for name, parameter in self.average.module.named_parameters()}

    def restore(self, own: Mapping[str, Any], shared: Mapping[str, Any], batches: Sequence[Batch]) -> None:
        """Go on from saved states, bit for bit; every worker calls it before its first step.

        DDP orders its buckets anew after its first backward, and k is counted bucket by bucket: a step on the first
        order would choose other entries. So one backward is run before, whose every trace is then replaced.

        Args:
            own: this worker's.
            shared: the same on every worker.
            batches: for the backward that is thrown away.
        """
        if self._compression is not None:
            self._backward(batches)
        self._optimizer.zero_grad()
        self.model.load_state_dict(shared["model"])
        self._optimizer.load_state_dict(shared["optimizer"])
        if self.precision.scaler.is_enabled():
            self.precision.scaler.load_state_dict(shared["scaler"])
        if self.average:
            for name, average in self._averages().items():
                average.copy_(shared["average"][name])
        self.skipped = shared["skipped"]
        if self._local is not None:
            self._local.load_state_dict(own)
        elif self._compression is not None:
            self._compression.load_state_dict(own)
