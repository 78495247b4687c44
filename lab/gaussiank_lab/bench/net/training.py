"""What a rank does: the workload, its exchange alone or in training steps, and the time of each phase."""

from __future__ import annotations

import datetime
import gc
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gaussiank import AdamWarning
from gaussiank.autotune import parse_policy
from gaussiank.codec import chosen_wire
from gaussiank.comm import all_reduce_bytes
from gaussiank.compressors import parse_compressor
from gaussiank.layout import Layout
from gaussiank.reducer import GradientReducer, Settings
from gaussiank.schedule import Constant
from gaussiank.sparse import MAX_NUMEL
from gaussiank_lab.bench.net.exchanges import TIMEOUT_S, Carrier, PaperExchange, Spent, carrier_of
from gaussiank_lab.bench.net.links import DEVICE, Counters, read_counters
from gaussiank_lab.bench.net.methods import DDP, PAPER, NetMethod, Rows
from gaussiank_lab.data import Batch, Batches, Data
from gaussiank_lab.models import MODELS, find_model
from gaussiank_lab.tasks import Task
from gaussiank_lab.train.config import TrainConfig, resolve

SMALL_ALEXNET = "alexnet-small"
VECTOR = "vector:"
_WIDTH = 0.625


@dataclass(frozen=True)
class TrainingWorkload:
    """A model by name, or a vector.

    Attributes:
        name: as the user wrote it.
        like: model of the lab whose data and settings it trains with; empty for a vector.
        build: makes the model for a number of outputs; None for the model of ``like``.
        numel: entries of a vector; 0 for a model.
    """

    name: str
    like: str = ""
    build: Callable[[int], nn.Module] | None = None
    numel: int = 0


def parse_workload(text: str) -> TrainingWorkload:
    """Read a workload: a model's name, ``alexnet-small``, or ``vector:N``, the exchange alone of N random entries.

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_workload("vector:1e7").numel, parse_workload("alexnet-small").like
        (10000000, 'alexnet')
    """
    name = text.strip()
    if name == SMALL_ALEXNET:
        return TrainingWorkload(name, "alexnet", small_alexnet)
    if name.startswith(VECTOR):
        try:
            numel = int(float(name.removeprefix(VECTOR)))
        except (ValueError, OverflowError):
            numel = 0
        if not 1000 <= numel <= MAX_NUMEL:
            raise ValueError(f"models must give a vector 1000 to {MAX_NUMEL} entries, got {text!r}. Write vector:1e7.")
        return TrainingWorkload(name, numel=numel)
    try:
        return TrainingWorkload(name, find_model(name).name)
    except ValueError:
        known = ", ".join((*MODELS, SMALL_ALEXNET, f"{VECTOR}N"))
        raise ValueError(f"models must be among {known}, got {text!r}. Correct it.") from None


def small_alexnet(classes: int) -> nn.Module:
    """Make AlexNet with 5/8 of its width: 24.8M parameters, 96 % of them in the fully connected layers.

    Example:
        >>> from gaussiank_lab.models.model_spec import count
        >>> count(lambda: small_alexnet(1000))
        24835760
    """
    sizes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
    pooled = (True, True, False, False, True)
    layers: list[nn.Module] = []
    for (inside, outside, kernel, stride, padding), pool in zip(sizes, pooled, strict=True):
        narrow = inside if inside == 3 else round(_WIDTH * inside)
        layers += [nn.Conv2d(narrow, round(_WIDTH * outside), kernel, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] * pool
    width = round(_WIDTH * 4096)
    head = [nn.Dropout(), nn.Linear(round(_WIDTH * 256) * 36, width), nn.ReLU(), nn.Dropout()]
    head += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(width, classes))


_NARROW = {"ddp-fp16": torch.float16, "ddp-bf16": torch.bfloat16}


class VectorCarrier:
    """Exchange one vector a step, from gradient to mean; a fresh gradient is drawn before the clock runs.

    Args:
        method: the way, but neither PowerSGD, which needs matrices, nor none at all.
        numel: entries.
        density: share of entries to send.
    """

    def __init__(self, method: NetMethod, numel: int, density: float) -> None:
        self.numel = numel
        self._method, self._density = method, density
        self._random = torch.Generator().manual_seed(dist.get_rank())
        self._grad = torch.empty(numel)
        self._layout = Layout(("vector",), (numel,))
        self._reducer: GradientReducer | None = None
        self._paper = PaperExchange(PAPER[method.name], density) if method.family == "paper" else None
        self._spent = Spent(None, None, None, 0, 0, dense=True)

    def attach(self, optimizer: None) -> None:
        """Set up what may measure the link."""
        if self._method.family == "ours":
            self._reducer = GradientReducer(
                {"vector": self.numel},
                Settings(
                    Constant(self._density),
                    parse_compressor(self._method.compressor),
                    collective=parse_policy(self._method.collective),
                    wire=chosen_wire(self._method.wire, [self._grad]),
                    timeout_s=TIMEOUT_S,
                ),
            )

    def step(self) -> float:
        """Exchange a vector; returns the seconds."""
        self._grad.normal_(generator=self._random)
        dist.barrier()  # drawing takes longer than a sparse exchange
        began = time.perf_counter()
        if self._reducer is not None:
            self._compressed(self._reducer)
        elif self._paper is not None:
            self._paper.reduce([self._grad])
        else:
            self._dense(self._grad)
        taken_s = time.perf_counter() - began
        self._note(taken_s)
        return taken_s

    def spent(self) -> Spent:
        """Return what the last step took."""
        return self._spent

    def _compressed(self, reducer: GradientReducer) -> None:
        reducer.begin()
        if reducer.dense:
            done = reducer.reduce_dense(lambda: self._layout, self._grad)
        else:
            done = reducer.reduce_sparse(self._layout, [self._grad])
        reducer.seal()
        done.wait()

    def _dense(self, grad: Tensor) -> None:
        """Do what DDP and its hooks do with a bucket."""
        grad.div_(dist.get_world_size())
        if self._method.name == DDP:
            dist.all_reduce(grad)
            return
        narrow = grad.to(_NARROW[self._method.name])
        dist.all_reduce(narrow)
        grad.copy_(narrow)

    def _note(self, taken_s: float) -> None:
        found = self._paper or (self._reducer.measured if self._reducer else None)
        if found is not None:
            self._spent = Spent(
                found.select_s, found.exchange_s, found.finish_s, found.sent_bytes, found.kept,
                dense=found.kept == self.numel,
            )  # fmt: skip
            return
        sent = self._grad.to("meta", _NARROW.get(self._method.name, torch.float32))
        self._spent = Spent(None, taken_s, None, all_reduce_bytes(sent, dist.get_world_size()), self.numel, dense=True)


_SMOOTHED = 10
_BARRIERS = 8


class StepRow(NamedTuple):
    """One step on this worker, in seconds.

    Attributes:
        step_s: the whole step.
        forward_s: data, forward and loss.
        backward_s: backward, and the exchange within it or after it.
        optimizer_s: the optimizer's step, and the exchange after it.
        loss: of this worker's batch, before the step.
        spent: what the exchange took.
    """

    step_s: float
    forward_s: float
    backward_s: float
    optimizer_s: float
    loss: float
    spent: Spent


class Window(NamedTuple):
    """Some steps in a row on this worker.

    Attributes:
        steps: one row each.
        counters: what the kernel counted meanwhile; None on loopback, which is not ours alone.
        numel: parameters.
        reached: whether the last step reached the loss that was wanted.
    """

    steps: list[StepRow]
    counters: Counters | None
    numel: int
    reached: bool = False


class _Course(NamedTuple):
    """What a model is trained on, and with; a vector has none."""

    task: Task
    batches: Iterator[Any]
    optimizer: torch.optim.Optimizer
    clip_norm: float | None


def _optimizer(config: TrainConfig, method: NetMethod, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimizer of the model's recipe, in torch's fused form; divided gradients take SGD without momentum."""
    if isinstance(method.special, Rows):
        return torch.optim.SGD(parameters, config.lr, fused=True)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, config.lr, betas=(config.momentum, 0.999), fused=True)
    return torch.optim.SGD(parameters, config.lr, momentum=0.9, fused=True)


class Trainer:
    """Take orders of the lab; a method is set up, warmed up, measured, and dropped.

    Args:
        rank: of this worker.
        world_size: of all.
        url: where they meet.
    """

    def __init__(self, rank: int, world_size: int, url: str) -> None:
        self._rank, self._world_size = rank, world_size
        warnings.filterwarnings("ignore", category=AdamWarning)  # steps are timed here, however well they train
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
        timeout = datetime.timedelta(seconds=TIMEOUT_S)
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world_size, timeout=timeout)
        self._counted = os.environ.get("GLOO_SOCKET_IFNAME") == DEVICE
        self._data: dict[str, tuple[TrainConfig, Data]] = {}
        self._carrier: Carrier | VectorCarrier | None = None
        self._course: _Course | None = None
        self._period = 1
        self._kept: dict[str, tuple[Carrier | VectorCarrier | None, _Course | None, int, int]] = {}

    def prepare(
        self, workload: TrainingWorkload, method: NetMethod, density: float, batch_size: int, seed: int
    ) -> None:
        """Make the model and whatever carries its gradients."""
        torch.manual_seed(seed)
        self._period = method.period
        if workload.numel:
            self._carrier = VectorCarrier(method, workload.numel, density)
            return
        config, data = self._loaded(workload.like, batch_size)
        build = workload.build or config.spec.build
        model = build(data.outputs)
        self._numel = sum(parameter.numel() for parameter in model.parameters())
        self._carrier = carrier_of(method, model, density, config.clip_grad)
        clip_norm = None if self._carrier.clips else config.clip_grad
        optimizer = _optimizer(config, method, model.parameters())
        self._course = _Course(data.task, self._endless(data, batch_size, seed), optimizer, clip_norm)
        torch.manual_seed((seed << 16) + 1 + self._rank)  # every worker drops out its own activations

    def attach(self) -> None:
        """Set up what may look at the link."""
        carrier = self._carrier
        assert carrier is not None  # prepared
        if isinstance(carrier, VectorCarrier):
            carrier.attach(None)
        else:
            assert self._course is not None
            carrier.attach(self._course.optimizer)

    def warm(self, steps: int) -> None:
        """Take steps that do not count: DDP orders its buckets anew, hints settle, two rounds of local steps end."""
        for _ in range(max(steps, 2 * self._period) if steps and self._period > 1 else steps):
            self._step()

    def measure(self, most: int, budget_s: float, until_loss: float | None) -> Window:
        """Take steps that count.

        Where a method exchanges every so many steps, whole rounds of them are taken, at least one.

        Args:
            most: steps at most.
            budget_s: seconds; a step longer than that is taken once.
            until_loss: end when the loss falls below this, whatever the budget says; None takes all steps.
        """
        of_barrier = self._count_barriers()
        before = read_counters(DEVICE) if self._counted else None
        collected = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            rows = [self._step()]
            if until_loss is not None:
                return self._until(until_loss, most, rows)
            rows += [self._step() for _ in range(self._period - 1)]
            slowest = torch.tensor([sum(row.step_s for row in rows)], dtype=torch.float64)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)  # all must take as many steps
            rounds = min(most // self._period, int(budget_s / float(slowest)))
            rows += [self._step() for _ in range(self._period * (rounds - 1))]
        finally:
            if collected:
                gc.enable()
        dist.barrier()
        counters = None
        if before is not None:
            barriers = 1 + len(rows) * isinstance(self._carrier, VectorCarrier)
            counters = read_counters(DEVICE).since(before).without(of_barrier, barriers / _BARRIERS)
        return Window(rows, counters, self._numel)

    def _count_barriers(self) -> Counters:
        """Return what some barriers send, which are the lab's own and no exchange's."""
        dist.barrier()
        before = read_counters(DEVICE) if self._counted else None
        for _ in range(_BARRIERS):
            dist.barrier()
        return Counters(0, 0, 0, 0) if before is None else read_counters(DEVICE).since(before)

    def _until(self, target: float, most: int, rows: list[StepRow]) -> Window:
        """Train until the mean loss of the last ten steps, over all workers, is below a target."""
        reached = False
        while not reached and len(rows) < most:
            rows.append(self._step())
            recent = torch.tensor([statistics.fmean(row.loss for row in rows[-_SMOOTHED:])], dtype=torch.float64)
            dist.all_reduce(recent)  # not timed
            reached = len(rows) >= _SMOOTHED and float(recent) / self._world_size <= target
        return Window(rows, None, self._numel, reached)

    def keep(self, name: str) -> None:
        """Put the model aside; another may be prepared."""
        self._kept[name] = self._carrier, self._course, self._numel, self._period

    def recall(self, name: str) -> None:
        """Go on with a model that was put aside."""
        self._carrier, self._course, self._numel, self._period = self._kept[name]

    def drop(self) -> None:
        """Forget the model, and all that were put aside."""
        self._carrier = self._course = None
        self._kept.clear()
        gc.collect()

    # ------------------------------------------------------------------ one step

    def _step(self) -> StepRow:
        carrier = self._carrier
        if isinstance(carrier, VectorCarrier):
            self._numel = carrier.numel
            step_s = carrier.step()
            return StepRow(step_s, 0.0, step_s, 0.0, 0.0, carrier.spent())
        assert carrier is not None  # prepared
        assert self._course is not None
        task, batches, optimizer, clip_norm = self._course
        began = time.perf_counter()
        optimizer.zero_grad()
        batch = next(batches)
        output = carrier.module(*batch.inputs)
        loss = task.loss(output, batch.targets)
        lost = time.perf_counter()
        loss.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(carrier.module.parameters(), clip_norm)
        carrier.after_backward()
        back = time.perf_counter()
        optimizer.step()
        carrier.after_step()
        ended = time.perf_counter()
        return StepRow(ended - began, lost - began, back - lost, ended - back, loss.item(), carrier.spent())

    def _loaded(self, name: str, batch_size: int) -> tuple[TrainConfig, Data]:
        if name not in self._data:
            config = TrainConfig(**resolve(None, None, {"model": name, "batch_size": batch_size}))
            self._data[name] = (config, config.load_data())
            gc.freeze()  # torch has a million objects, which every collection would look at for 0.15 s
        return self._data[name]

    def _endless(self, data: Data, batch_size: int, seed: int) -> Iterator[Any]:
        batches = Batches(data.train, batch_size, rank=self._rank, world_size=self._world_size, seed=seed)
        epoch = 0
        while True:
            for batch in batches.epoch(epoch):
                yield Batch(data.train.prepare(batch.inputs), batch.targets)
            epoch += 1
