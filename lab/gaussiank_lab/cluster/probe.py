"""Measures links, the model's buckets, selection and codec of this machine, or of a torchrun job."""

# No `from __future__ import annotations` here: DDP reads the annotations of a hook as types.

import datetime
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

import gaussiank
from gaussiank import ops
from gaussiank.autotune import parse_policy
from gaussiank.codec import Wire, default_wire
from gaussiank.compressors import COMPRESSORS, parse_compressor
from gaussiank.layout import Layout
from gaussiank.parsing import number_from
from gaussiank.reducer import GradientReducer, Settings
from gaussiank.schedule import Constant
from gaussiank.sparse import SparseGradient
from gaussiank_lab.cluster.probe_file import EXCHANGES, MEASURED_DENSITY, Points, Probe, read_probe, write_probe
from gaussiank_lab.cluster.simulate import bits_text, count_text, plain_table, seconds_text
from gaussiank_lab.data import Batches
from gaussiank_lab.machine import cpu_name
from gaussiank_lab.models import MODELS
from gaussiank_lab.train.config import TrainConfig, resolve


@dataclass(frozen=True)
class Effort:
    """Say how long to measure.

    Args:
        least: runs of each piece of work.
        most: runs of a short one.
        enough_s: seconds after which a piece of work is not repeated.
        message_bytes: sizes of messages.
        numels: lengths of vectors; the model's own is added.
        entries: entries of payloads.
        steps: training steps.
    """

    least: int = 5
    most: int = 50
    enough_s: float = 0.2
    message_bytes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    numels: tuple[int, ...] = (10_000, 100_000, 1_000_000, 4_000_000)
    entries: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    steps: int = 15


QUICK = Effort(3, 10, 0.02, (1_000, 100_000, 1_000_000), (10_000, 100_000), (100, 10_000), 5)
"""For a first look: medians of few runs, which a busy machine shifts."""


def now(device: torch.device) -> float:
    """Return the clock once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median_s(work: Callable[[], object], device: torch.device, effort: Effort) -> float:
    """Return the median seconds of ``work``, after one run that does not count."""
    work()
    taken: list[float] = []
    while len(taken) < effort.least or (len(taken) < effort.most and sum(taken) < effort.enough_s):
        began = now(device)
        work()
        taken.append(now(device) - began)
    return statistics.median(taken)


TOO_LONG_S = 2.0
"""A message that takes longer ends its row: the next would take ten times as long."""

# all_gather_into_tensor has had this name since torch 2.13, which deprecates the old one
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def measure_links(device: torch.device, effort: Effort, group: dist.ProcessGroup | None = None) -> dict[str, Points]:
    """Time each collective at each size, of the slowest worker of all; the same result on all of them.

    Args:
        device: where messages are.
        effort: how often, and at which sizes.
        group: workers among whom to measure; all groups measure at once. None: all workers.
    """
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return {}
    first = dist.get_process_group_ranks(group)[0]
    work: dict[str, Callable[[int], Callable[[], object]]] = {
        "all_reduce": lambda size: _with(_floats(size, device), lambda vector: dist.all_reduce(vector, group=group)),
        "all_gather": lambda size: _gather(size, world_size, device, group),
        "all_to_all": lambda size: _all_to_all(size, world_size, device, group),
        "broadcast": lambda size: _with(
            _floats(size, device), lambda vector: dist.broadcast(vector, first, group=group)
        ),
    }
    return {name: _row(make, device, effort) for name, make in work.items()}


def node_group() -> dist.ProcessGroup | None:
    """Return a group of this node's workers; None where all are on one node, or each on its own."""
    world_size, here = dist.get_world_size(), number_from("LOCAL_WORLD_SIZE", 1, least=1)
    if here in (1, world_size) or world_size % here:
        return None
    first = dist.get_rank() - dist.get_rank() % here
    group: dist.ProcessGroup = dist.new_group(list(range(first, first + here)), use_local_synchronization=True)
    return group


def measure_contention(compute: Callable[[], object], device: torch.device, effort: Effort) -> float:
    """Return the seconds that ``compute`` loses for each second that a message is under way at the same time."""
    if dist.get_world_size() == 1:
        return 0.0
    alone_s = _agreed_s(compute, device, effort)
    vector = _floats(1_000_000, device)
    message_s = _agreed_s(lambda: dist.all_reduce(vector), device, effort)
    rounds = max(1, min(50, round(alone_s / message_s)))

    lost: list[float] = []
    for _ in range(effort.least):
        dist.barrier()
        began = time.perf_counter()
        works = [dist.all_reduce(vector, async_op=True) for _ in range(rounds)]
        compute()
        lost.append(now(device) - began - alone_s)
        for message in works:
            assert message is not None  # async_op
            message.wait()
    shared_s = min(alone_s, rounds * message_s)
    mean = torch.tensor([max(0.0, statistics.median(lost)) / shared_s], dtype=torch.float64)
    dist.all_reduce(mean)
    return float(mean / dist.get_world_size())


def _row(make: Callable[[int], Callable[[], object]], device: torch.device, effort: Effort) -> Points:
    points: list[tuple[float, float]] = []
    for size in effort.message_bytes:
        seconds = _agreed_s(make(size), device, effort)
        points.append((float(size), seconds))
        if seconds > TOO_LONG_S:
            break
    return tuple(points)


def _agreed_s(work: Callable[[], object], device: torch.device, effort: Effort) -> float:
    """Return the median over runs of the slowest worker's time; all workers make as many runs."""
    work()
    taken: list[float] = []
    while len(taken) < effort.least or (len(taken) < effort.most and sum(taken) < effort.enough_s):
        dist.barrier()
        began = now(device)
        work()
        slowest = torch.tensor([now(device) - began], dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        taken.append(float(slowest))  # the same on all, so that all stop together
    return statistics.median(taken)


def _floats(size: int, device: torch.device) -> Tensor:
    return torch.zeros(size // 4, device=device)


def _with(vector: Tensor, operation: Callable[[Tensor], object]) -> Callable[[], object]:
    return lambda: operation(vector)


def _gather(size: int, world_size: int, device: torch.device, group: dist.ProcessGroup | None) -> Callable[[], object]:
    row = torch.zeros(size, dtype=torch.uint8, device=device)
    rows = torch.zeros(world_size * size, dtype=torch.uint8, device=device)
    return lambda: _all_gather(rows, row, group=group)


def _all_to_all(
    size: int, world_size: int, device: torch.device, group: dist.ProcessGroup | None
) -> Callable[[], object]:
    rows = torch.zeros(world_size * size, dtype=torch.uint8, device=device)
    received = torch.zeros_like(rows)
    return lambda: dist.all_to_all_single(received, rows, group=group)


WARM_STEPS = 3


class ModelTimes(NamedTuple):
    """Medians on this worker, in seconds.

    Attributes:
        forward_s: input, forward and loss.
        backward_s: of each bucket, in the order of backward.
        optimizer_s: the optimizer's step, and setting gradients to zero.
        numels: of the buckets.
        epoch_samples: examples of an epoch.
        compute_cv: deviation over mean of forward and backward.
    """

    forward_s: float
    backward_s: tuple[float, ...]
    optimizer_s: float
    numels: tuple[int, ...]
    epoch_samples: int
    compute_cv: float


class _Clock:
    """Notes when each bucket is full, and sends nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.full: list[float] = []
        self.numels: list[int] = []


def _note(state: _Clock, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    if bucket.index() == 0:
        state.full, state.numels = [], []
    state.full.append(now(state.device))
    state.numels.append(bucket.buffer().numel())
    done: torch.futures.Future[Tensor] = torch.futures.Future(
        devices=[state.device] if state.device.type == "cuda" else None
    )
    done.set_result(bucket.buffer())
    return done


def measure_model(name: str, batch_size: int, device: torch.device, effort: Effort) -> ModelTimes:
    """Train a few steps without any message, all workers at once, as they will in training.

    Args:
        name: key of the lab's ``MODELS``.
        batch_size: examples of this worker.
        device: where to train.
        effort: how many steps.
    """
    config = TrainConfig(**resolve(None, None, {"model": name, "batch_size": batch_size}))
    data = config.load_data()
    batches = Batches(data.train, batch_size, rank=dist.get_rank(), world_size=dist.get_world_size(), seed=0)
    batch = next(batches.epoch(0)).to(device)
    torch.manual_seed(0)
    module = DistributedDataParallel(config.spec.build(data.outputs).to(device))
    clock = _Clock(device)
    module.register_comm_hook(clock, _note)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    forward, buckets, stepped = [], [], []
    for step in range(WARM_STEPS + effort.steps):
        dist.barrier()
        began = now(device)
        loss = data.task.loss(module(*data.train.prepare(batch.inputs)), batch.targets)
        lost = now(device)
        loss.backward()
        back = now(device)
        optimizer.step()
        optimizer.zero_grad()
        ended = now(device)
        if step >= WARM_STEPS:
            edges = [lost, *clock.full[:-1], back]  # what is left after the last bucket belongs to it
            forward.append(lost - began)
            buckets.append([end - start for start, end in itertools.pairwise(edges)])
            stepped.append(ended - back)
    whole = sorted(sum(row) + first for row, first in zip(buckets, forward, strict=True))
    middle = statistics.median(whole)
    last = len(whole) - 1
    spread = (whole[round(0.84 * last)] - whole[round(0.16 * last)]) / 2  # one deviation, without outliers
    return ModelTimes(
        statistics.median(forward),
        tuple(statistics.median(column) for column in zip(*buckets, strict=True)),
        statistics.median(stepped),
        tuple(clock.numels),
        len(data.train),
        spread / middle,
    )


PARTS = 4
WARM_RUNS = 2


def measure_selection(numel: int, device: torch.device, effort: Effort) -> dict[str, Points]:
    """Time what backward waits for, of each compressor, by length: adding the residual, selecting, encoding.

    Args:
        numel: longest vector that matters.
        device: where gradients are.
        effort: how often, and at which lengths.

    Returns:
        Compressor -> (numel, seconds), the encoding at density 0.001 included.
    """
    alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    names = [name for name in COMPRESSORS if not parse_compressor(name).sends_all]
    return {
        name: tuple(
            (float(length), _select_s(name, length, device, effort, alone)) for length in _lengths(numel, effort)
        )
        for name in names
    }


def _select_s(name: str, numel: int, device: torch.device, effort: Effort, alone: dist.ProcessGroup | None) -> float:
    compressor = parse_compressor(name)
    layout, grad, taken = Layout(("vector",), (numel,)), torch.empty(numel, device=device), []
    wire = default_wire([grad])
    reducer = GradientReducer(
        {"vector": numel}, Settings(Constant(MEASURED_DENSITY), compressor, wire=wire), group=alone, device=device
    )
    generator = torch.Generator(device).manual_seed(0)
    for _ in range(WARM_RUNS + effort.least):
        grad.normal_(generator=generator)
        reducer.begin()
        reducer.reduce_sparse(layout, [grad]).wait()
        reducer.seal()
        taken.append(reducer.measured.select_s)
    return statistics.median(taken[WARM_RUNS:])  # the first has no hint, and its pages are new


def measure_exchanges(numel: int, device: torch.device, effort: Effort) -> dict[str, Points]:
    """Time whole exchanges of a selection, of the slowest worker of all; the same result on all of them.

    Torch's messages alone do not tell: an exchange hands over between threads, and waits for turns where cores are few.

    Args:
        numel: length of the vector.
        device: where gradients are.
        effort: how often.

    Returns:
        Collective -> (numel, seconds), from the end of the selection to the mean; empty for one worker.
    """
    if dist.get_world_size() == 1:
        return {}
    return {name: ((float(numel), _exchange_s(name, numel, device, effort)),) for name in EXCHANGES}


def _exchange_s(name: str, numel: int, device: torch.device, effort: Effort) -> float:
    layout, grad, taken = Layout(("vector",), (numel,)), torch.empty(numel, device=device), []
    reducer = GradientReducer(
        {"vector": numel},
        Settings(
            Constant(MEASURED_DENSITY),
            parse_compressor("topk"),
            wire=default_wire([grad]),
            collective=parse_policy(name),
        ),
        device=device,
    )
    for _ in range(WARM_RUNS + 3 * effort.least):
        grad.normal_()
        dist.barrier()
        began = now(device)
        reducer.begin()
        done = reducer.reduce_sparse(layout, [grad])
        reducer.seal()
        done.wait()
        slowest = torch.tensor([now(device) - began - reducer.measured.select_s], dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        taken.append(float(slowest))
    return statistics.median(taken[WARM_RUNS:])


def measure_curves(numel: int, device: torch.device, effort: Effort) -> dict[str, Points]:
    """Time encoding, decoding and merging over entries, and clearing and casting over numel.

    Encoding rounds as well: both are of the wire that training uses where the gradients are.
    """
    encode, decode, merge, wire = [], [], [], default_wire([torch.empty(0, device=device)])
    for entries in effort.entries:
        length = 20 * entries
        parts = [_random(entries, length, seed, device) for seed in range(PARTS)]
        payloads = [wire.pack(part, capacity=entries).row for part in parts]
        out = torch.empty(length, device=device)
        encode.append((float(entries), median_s(partial(wire.pack, parts[0], capacity=entries), device, effort)))
        added_s = median_s(partial(_add_up, payloads, out, wire, entries), device, effort)
        decode.append((float(PARTS * entries), max(1e-9, added_s - median_s(out.zero_, device, effort))))
        merge.append((float(PARTS * entries), median_s(partial(ops.union, parts), device, effort)))
    clear, cast = [], []
    for length in _lengths(numel, effort):
        vector = torch.ones(length, device=device)
        clear.append((float(length), median_s(vector.zero_, device, effort)))
        cast.append((float(length), median_s(partial(_to_16_bits_and_back, vector), device, effort)))
    rows = {"encode": encode, "decode": decode, "merge": merge, "clear": clear, "cast": cast}
    return {name: tuple(points) for name, points in rows.items()}


def _lengths(numel: int, effort: Effort) -> list[int]:
    """Return the lengths that matter for a model of ``numel``: its own, and shorter ones, which its buckets have."""
    return sorted({*(length for length in effort.numels if length <= max(numel, effort.numels[1])), numel})


def _to_16_bits_and_back(vector: Tensor) -> None:
    vector.copy_(vector.bfloat16())


def _add_up(payloads: list[Tensor], out: Tensor, wire: Wire, entries: int) -> None:
    parts = [wire.decode(payload, out.numel(), dtype=out.dtype, capacity=entries) for payload in payloads]
    ops.scatter_mean(parts, out)


def _random(entries: int, numel: int, seed: int, device: torch.device) -> SparseGradient:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(numel, generator=generator)[:entries].sort().values.int()
    values = torch.randn(entries, generator=generator)
    return SparseGradient(indices.to(device), values.to(device), numel)


def require_measurable(model: str, batch_size: int, workers: int, device: str) -> None:
    """Raise what every worker would raise, before any of them is started.

    Raises:
        ValueError: an unknown model or device, or a number below 1.
    """
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}. Correct it.")
    for argument, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}. Raise it.")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device!r}. Choose one of them.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be cpu where torch sees no CUDA, got 'cuda'. Leave it out.")


def run_probe(model: str, batch_size: int, device_name: str, out: Path, effort: Effort) -> None:
    """Measure and write; within a process group.

    Args:
        model: key of the lab's ``MODELS``.
        batch_size: examples a worker and step.
        device_name: ``cpu`` or ``cuda``.
        out: file that rank 0 writes.
        effort: how long to measure.
    """
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(number_from("LOCAL_RANK", 0))
        device = torch.device("cuda", torch.cuda.current_device())
    times = measure_model(model, batch_size, device, effort)
    links = measure_links(device, effort)
    node = node_group()
    links_inside = {} if node is None else measure_links(device, effort, node)
    longest = sum(times.numels)
    probe = _probe(
        model, batch_size, device, effort, times, (links, links_inside),
        {name: _averaged(points) for name, points in measure_selection(longest, device, effort).items()},
        {name: _averaged(points) for name, points in measure_curves(longest, device, effort).items()},
        measure_exchanges(longest, device, effort),
    )  # fmt: skip
    if dist.get_rank() == 0:
        write_probe(out, probe)
        show_probe(Console(), read_probe(out), out)


def _probe(
    model: str,
    batch_size: int,
    device: torch.device,
    effort: Effort,
    times: ModelTimes,
    links: tuple[dict[str, Points], dict[str, Points]],
    select: dict[str, Points],
    curves: dict[str, Points],
    exchanges: dict[str, Points],
) -> Probe:
    measured = _mean([times.forward_s, times.optimizer_s, times.compute_cv, *times.backward_s])
    matrix = torch.rand(400, 400, device=device)
    contention = measure_contention(lambda: [matrix @ matrix for _ in range(40)], device, effort)
    return Probe(
        gaussiank=gaussiank.__version__,
        date=f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}",
        machine=f"{_device_name(device)}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}",
        workers=dist.get_world_size(),
        workers_per_node=number_from("LOCAL_WORLD_SIZE", dist.get_world_size(), least=1),
        device=device.type,
        model=model,
        batch_size=batch_size,
        epoch_samples=times.epoch_samples,
        forward_s=measured[0],
        optimizer_s=measured[1],
        buckets=tuple(zip(map(float, times.numels), measured[3:], strict=True)),
        links=links[0],
        links_inside=links[1],
        select=_without_encoding(select, curves["encode"]),
        curves=curves,
        exchanges=exchanges,
        contention=min(contention, 1.0),
        compute_cv=min(measured[2], 0.5),
    )


def _without_encoding(select: dict[str, Points], encode: Points) -> dict[str, Points]:
    """Take the encoding out of the selection: the model adds it for the entries that are really sent."""
    from gaussiank_lab.sim import Curve

    encode_s = Curve.of(encode)
    return {
        name: tuple(
            (numel, max(0.2 * seconds, seconds - encode_s(max(1, MEASURED_DENSITY * numel)))) for numel, seconds in row
        )
        for name, row in select.items()
    }


def _averaged(points: Points) -> Points:
    return tuple(zip((size for size, _ in points), _mean([seconds for _, seconds in points]), strict=True))


def _mean(values: list[float]) -> list[float]:
    """Average over workers."""
    table = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(table)
    return [float(value) for value in table / dist.get_world_size()]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def show_probe(console: Console, probe: Probe, path: Path) -> None:
    """Print what was found, in a few lines."""
    backward_s = sum(seconds for _, seconds in probe.buckets)
    numel = sum(numel for numel, _ in probe.buckets)
    console.print(
        f"{probe.model}, {count_text(numel)} parameters in {len(probe.buckets)} buckets, batch {probe.batch_size}: "
        f"forward {seconds_text(probe.forward_s)}, backward {seconds_text(backward_s)}, optimizer "
        f"{seconds_text(probe.optimizer_s)}; {probe.workers} workers on {probe.machine}\n",
        highlight=False,
    )
    if probe.links:
        sizes = [size for size, _ in max(probe.links.values(), key=len)]
        table = plain_table("Messages, slowest worker", ("", *(f"{size / 1000:g} kB" for size in sizes)))
        for name, points in probe.links.items():
            table.add_row(name, *(seconds_text(seconds) for _, seconds in points))
        console.print(table)
        for tier in probe.setting(str(path)).scenario.cluster.tiers:
            link = tier.link
            fitted = f"{seconds_text(link.latency_s)} a message, {bits_text(link.bandwidth_bits_s)}"
            console.print(f"As {link.name}: {fitted}", highlight=False)
        whole = ", ".join(f"{name} {seconds_text(points[0][1])}" for name, points in probe.exchanges.items())
        console.print(f"Whole exchanges at density {MEASURED_DENSITY:g}: {whole}", highlight=False)
        console.print(f"Backward loses {probe.contention:.2f} s a second of messages.\n", highlight=False)
    table = plain_table("Own work", ("", *(count_text(size) for size, _ in next(iter(probe.select.values())))))
    for name, points in probe.select.items():
        table.add_row(f"select {name}", *(seconds_text(seconds) for _, seconds in points))
    console.print(table)
    console.print(f"\nWritten: {path}. Next: gaussiank advise --probe {path}", soft_wrap=True, highlight=False)
