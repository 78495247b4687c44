"""The questions, in order of their worth, each answered by one function within two minutes; ``PARTS`` is the table.

Each takes a device. On ``cpu`` it goes through the same steps, so that its logic is tested where there is no GPU, and
answers nothing about one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch._C._distributed_c10d import HashStore, Store, TCPStore  # torch.distributed shows them at run time only

from gaussiank import ops
from gaussiank.codec import INDEX_CODES, VALUE_CODES, Wire
from gaussiank.collectives import parse_collective
from gaussiank.comm import Communicator, Work
from gaussiank.compressors import COMPRESSORS, parse_compressor
from gaussiank.layout import Layout
from gaussiank.ops import TakenRow, accelerator
from gaussiank.reducer import GradientReducer, Settings
from gaussiank.schedule import Constant
from gaussiank.sparse import SparseGradient

DENSITY = 0.001
_SLEEP_CYCLES = 200_000_000  # of a GPU's clock: a tenth of a second
_NUMEL = {"cpu": 20_000, "cuda": 2_000_000}
_SPEED_NUMELS = {"cpu": (10_000,), "cuda": (1 << 20, 6_553_600, 25_600_000, 138_000_000)}
_BUCKET_NUMEL = {"cpu": 10_000, "cuda": 6_553_600}  # of DDP's 25 MiB
_ROUNDS = 20


@dataclass
class Answer:
    """What a part has found.

    Args:
        passed: whether all is as it must be; None where nothing was decided: only measured, or not possible here.
        said: in a sentence.
        rows: one for each case.
    """

    passed: bool | None
    said: str
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """A question.

    Args:
        name: of the part.
        question: that it answers.
        limit_s: seconds after which it is ended.
        answer: what answers it, on a device.
    """

    name: str
    question: str
    limit_s: float
    answer: Callable[[torch.device], Answer]


def _judged(rows: list[dict[str, Any]], what: str) -> Answer:
    """Return the answer of rows that each say whether they are ``right``."""
    wrong = [row for row in rows if not row["right"]]
    said = f"{len(rows) - len(wrong)} of {len(rows)} {what}"
    return Answer(not wrong, said + (f"; not {wrong[0]['case']}" if wrong else ""), rows)


# ---------------------------------------------------------------------- training, with one worker or more


@contextlib.contextmanager
def group(device: torch.device, rank: int = 0, world_size: int = 1, store: Store | None = None) -> Iterator[None]:
    """Connect workers as ``gaussiank train --device cuda`` does."""
    backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=store or HashStore(), rank=rank, world_size=world_size)
    yield
    dist.destroy_process_group()  # not after an error: what is left of a GPU's context may hang, and the process ends


def train(
    device: torch.device,
    *,
    numel: int,
    compressor: str = "topk",
    collective: str = "allgather",
    scope: Any = "bucket",
    steps: int = 3,
    hooked: Callable[[], object] = lambda: None,
    reducing: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> list[Tensor]:
    """Reduce gradients for some steps, as DDP's hook does.

    Args:
        device: where gradients are.
        numel: of all of them.
        compressor: which entries.
        collective: how workers agree.
        scope: where k is counted.
        steps: how many.
        hooked: called when the hook has returned, before its mean is waited for.
        reducing: what to enter around each step.

    Returns:
        The means of every step and the residuals, on the CPU.
    """
    layout = Layout(("first", "second"), (numel - numel // 3, numel // 3))
    settings = Settings(
        Constant(DENSITY),
        parse_compressor(compressor),
        collective=parse_collective(collective),
        wire=Wire("chunks", "bf16"),
        scope=scope,
    )
    parameters = dict(zip(layout.names, layout.numels, strict=True))
    reducer = GradientReducer(parameters, settings, device=device)
    ends = []
    for step in range(steps):
        whole = _gradient(numel, step).to(device)
        grads = list(whole.split(layout.numels)) if scope == "model" and not reducer.compressor.sends_all else [whole]
        grads = [grad.clone() for grad in grads]
        del whole
        with reducing():
            reducer.begin()
            done = (
                reducer.reduce_dense(lambda: layout, grads[0])
                if reducer.dense
                else reducer.reduce_sparse(layout, grads)
            )
            reducer.seal()
            hooked()
            done.wait()
        ends.append(torch.cat(grads))
    reducer.settle()
    return [one.cpu() for one in (*ends, reducer.feedback.residuals(layout))]


def _gradient(numel: int, step: int) -> Tensor:
    """Heavy tails and many ties, the same bits on every machine."""
    generator = torch.Generator().manual_seed(100 * step + (dist.get_rank() if dist.is_initialized() else 0))
    return torch.randint(-99, 100, (3, numel), generator=generator).float().prod(0) * 2.0**-20


def _same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Tell whether tensors on the CPU have the same bits; NaN equals NaN."""
    return len(left) == len(right) and all(
        one.shape == two.shape and one.dtype == two.dtype and bool(_equal(one, two).all())
        for one, two in zip(left, right, strict=True)
    )


def _equal(one: Tensor, two: Tensor) -> Tensor:
    if not one.is_floating_point():
        return one == two
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.itemsize]
    return (one.view(bits) == two.view(bits)) | (one.isnan() & two.isnan())


# ---------------------------------------------------------------------- order: memory, streams


def order(device: torch.device) -> Answer:
    """Delay every message on the device, overwrite by NaN what was let go meanwhile, and compare with a CPU."""
    numel = _NUMEL[device.type]
    ways = [("topk", "bucket"), ("topk", "layer"), ("topk", "model"), ("gaussiank", "bucket"), ("dense", "bucket")]
    rows = []
    with group(device), _late_messages(device):
        expected = {way: train(torch.device("cpu"), numel=numel, compressor=way[0], scope=way[1]) for way in ways}
        overwrite = partial(_overwrite, device, numel)
        for way in ways:
            got = train(device, numel=numel, compressor=way[0], scope=way[1], hooked=overwrite)
            rows.append({"case": f"{way[0]}, scope {way[1]}", "right": _same(got, expected[way])})
    return _judged(rows, "ways give the bits of the CPU, with messages late and freed memory overwritten")


def fault(device: torch.device) -> Answer:
    """Let nobody hold what messages still use, and see whether that is found as ``order`` looks for it."""
    numel, how = _NUMEL[device.type], "seen"
    try:
        with group(device), _late_messages(device), mock.patch.object(GradientReducer, "_hold", new=_let_go):
            expected = train(torch.device("cpu"), numel=numel, scope="model")
            got = train(device, numel=numel, scope="model", hooked=partial(_overwrite, device, numel))
            how = "NOT seen, so that part proves little" if _same(got, expected) else "seen"
    except RuntimeError as error:  # indices from freed memory
        how = f"seen, by an error: {str(error).splitlines()[0]}"
    return Answer(how.startswith("seen"), f"a fault that was put in is {how}")


def _let_go(*_: object) -> None:
    pass


@contextlib.contextmanager
def _late_messages(device: torch.device) -> Iterator[None]:
    """Let every all-gather on the device wait for a tenth of a second; backward goes on meanwhile."""
    plain = Communicator.all_gather

    def late(comm: Communicator, row: Tensor, **how: Any) -> Work[Tensor]:
        if not row.is_cuda:
            return plain(comm, row, **how)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            torch.cuda._sleep(_SLEEP_CYCLES)
            work = plain(comm, row, **how)
        row.record_stream(side)
        return work

    with mock.patch.object(Communicator, "all_gather", late):
        yield


def _overwrite(device: torch.device, numel: int) -> None:
    """Take memory of every size that a step uses, as the next layer's backward would, and write NaN there."""
    k = max(1, round(DENSITY * numel))
    sizes = [1, 64, k, 2 * k, 4 * k, numel // 3, numel - numel // 3, numel]
    held = [torch.full((size,), torch.nan, device=device) for size in sizes for _ in range(4)]
    del held


# ---------------------------------------------------------------------- bits: ops and wires


def bits(device: torch.device) -> Answer:
    """Run every op and every wire on the device and on the CPU."""
    rows = [{"case": name, "right": right} for name, right in (*_ops(device), *_wires(device))]
    return _judged(rows, "ops and wires give the bits of the CPU")


def _vectors(device: torch.device) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Names, gradients and residuals, on the CPU."""
    sizes = (1, 1000, 65_537) if device.type == "cpu" else (1, 1000, 65_537, 1_000_003, 20_000_000)
    for numel in sizes:
        generator = torch.Generator().manual_seed(numel)
        grad, residual = (torch.randn(numel, generator=generator) for _ in range(2))
        yield f"{numel} normal", grad, residual
        yield f"{numel} heavy tails", grad / torch.rand(numel, generator=generator).clamp_(1e-6), residual
        if numel < 2_000_000:
            for dtype in (torch.bfloat16, torch.float16):
                yield f"{numel} {dtype}".replace("torch.", ""), grad.to(dtype), residual
            yield f"{numel} float64", grad.double(), residual.double()
            yield f"{numel} ties", torch.ones(numel), torch.zeros(numel)
            yield f"{numel} zeros", torch.zeros(numel), torch.zeros(numel)
            spoilt = grad.clone()
            spoilt[:: max(1, numel // 7)] = torch.inf
            spoilt[numel // 2] = torch.nan
            yield f"{numel} infinities and NaN", spoilt, residual
            yield f"{numel} subnormal", grad * 1e-39, torch.zeros(numel)
        if numel > 1:
            yield f"{numel - 1} not aligned", grad[1:], residual[1:]


def _ops(device: torch.device) -> Iterator[tuple[str, bool]]:
    for name, grad, residual in _vectors(device):
        k = max(1, round(DENSITY * grad.numel()))
        here, there = (_results(grad.to(where), residual.to(where), k) for where in (torch.device("cpu"), device))
        for op, expected in here.items():
            yield f"{op}, {name}", _same(there[op], expected)


def _results(grad: Tensor, residual: Tensor, k: int) -> dict[str, list[Tensor]]:
    """Return what every op makes of a gradient and its residual, on the CPU."""
    out = torch.empty_like(residual)
    found: dict[str, Sequence[Any]] = {}
    taken = ops.accumulate_topk(grad, residual, k, out=out)
    found["accumulate_topk"] = taken.indices, taken.values, taken.hint, out.clone()
    again = ops.accumulate_topk(grad, residual, k, taken.hint, out=out)
    found["accumulate_topk with a hint"] = again.indices, again.values, again.hint, out.clone()
    accumulated = ops.accumulate(residual, grad, out=torch.empty_like(residual))
    found["topk"] = ops.topk(accumulated, k)[:3]
    found["select_topk"] = (ops.select_topk(accumulated, k),)
    found["select_above"] = (ops.select_above(accumulated, 2.0),)
    found["count_above"] = (torch.tensor(ops.count_above(accumulated.abs(), 2.0)),)
    above = ops.accumulate_threshold(grad, residual, 2.0, k, out=out)
    found["accumulate_threshold"] = above.indices, above.values, torch.tensor(above.above), out.clone()
    parts = [
        SparseGradient.pick(vector, ops.select_topk(vector, k)) for vector in (accumulated, residual, -accumulated)
    ]
    mean = torch.empty_like(residual)
    found["scatter_mean"] = ops.scatter_mean(parts, mean), mean
    joined = ops.union(parts)
    found["union"] = joined.indices, joined.values
    return {op: [one.cpu() for one in results] for op, results in found.items()}


def _wires(device: torch.device) -> Iterator[tuple[str, bool]]:
    numel, kept, room = 200_000, 180, 200
    generator = torch.Generator().manual_seed(0)
    indices = torch.randperm(numel, generator=generator)[:kept].sort().values.int()
    values = torch.randn(kept, generator=generator).exp() * torch.randn(kept, generator=generator).sign()
    for index in INDEX_CODES:
        for value in VALUE_CODES:
            if index != "seed" and value != "fp64":
                wire = Wire(index, value)
                here, there = (_through(wire, indices.to(w), values.to(w), numel, room) for w in ("cpu", device))
                yield f"wire {wire}", _same([one.cpu() for one in there], here)


def _through(wire: Wire, indices: Tensor, values: Tensor, numel: int, room: int) -> list[Tensor]:
    rounded = wire.round(values)
    payload = wire.encode(SparseGradient(indices, rounded, numel), capacity=room)
    back = wire.decode(payload, numel, dtype=torch.float32, capacity=room)
    by_cpu = wire.decode(payload.cpu(), numel, dtype=torch.float32, capacity=room)
    kept = indices.numel()
    return [rounded, back.indices[:kept], back.values[:kept], by_cpu.indices[:kept], by_cpu.values[:kept]]


# ---------------------------------------------------------------------- waits

_WAITLESS = ("topk", "trimmedtopk", "dense")


def waits(device: torch.device) -> Answer:
    """Count how often the hook lets the host wait for the device, and where."""
    rows = []
    with group(device):
        for name in COMPRESSORS:
            steps: list[list[str]] = []
            train(device, numel=_NUMEL[device.type], compressor=name, reducing=partial(_watched, device, steps))
            found = [place for step in steps[1:] for place in step]  # the first one makes NCCL's communicator
            row = {"case": name, "right": name not in _WAITLESS or not found, "waits": len(found) // 2}
            rows.append({**row, "at": ", ".join(sorted(set(found)))})
    return _judged(rows, "compressors wait for the device only where docs/gpu.md says so")


@contextlib.contextmanager
def _watched(device: torch.device, steps: list[list[str]]) -> Iterator[None]:
    """Add a list of where the host waits for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        yield
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    waiting = [one for one in caught if "synchroniz" in str(one.message)]
    steps.append([f"{Path(one.filename).name}:{one.lineno}" for one in waiting])


# ---------------------------------------------------------------------- kernels


def kernels_of(device: torch.device) -> str:
    """Name what runs the ops on a device: our kernels in Triton where they are there, or torch's own ops."""
    if device.type == "cpu":
        return "native" if len(ops.backends().available) > 1 else "torch"
    return "torch" if accelerator.kernels(device) is None else "triton"


def speed(device: torch.device) -> Answer:
    """Time ops against the copy rate of the same run, and against ``torch.topk``, by the device's own clock."""
    rows: list[dict[str, Any]] = []
    for numel in _SPEED_NUMELS[device.type]:
        if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 40 * numel:
            continue
        k = max(1, round(DENSITY * numel))
        grad, residual, out = (torch.randn(numel, device=device) for _ in range(3))
        taken = ops.accumulate_topk(grad, residual, k, out=out)
        hint, mean = taken.hint, torch.empty_like(out)
        layout = Wire("chunks", "bf16").row_format(k, numel)
        written = ops.accumulate_topk(grad, residual, k, hint, out=out, row=layout)

        def plain(grad: Tensor = grad, residual: Tensor = residual, k: int = k) -> Tensor:
            accumulated = residual + grad
            return accumulated[accumulated.abs().topk(k, sorted=False).indices]

        def take(grad=grad, residual=residual, out=out, k=k, hint=hint) -> object:  # type: ignore[no-untyped-def]
            return ops.accumulate_topk(grad, residual, k, hint, out=out)

        def by_torch(take: Callable[[], object] = take) -> object:
            with ops.use_backend("reference"):
                return take()

        timed: dict[str, Callable[[], object]] = {
            "copy": partial(out.copy_, grad),
            "add": partial(torch.add, residual, grad, out=out),
            "take": take,
            "take by torch's ops": by_torch,
            "torch.topk alone": partial(torch.topk, grad, k, sorted=False),
            "add, topk and gather in torch": plain,
            "mean of 8": partial(ops.scatter_mean, [SparseGradient(taken.indices, taken.values, numel)] * 8, mean),
        }
        if isinstance(written, TakenRow) and layout is not None:
            arrived = written.row.repeat(8, 1)
            timed["take and pack"] = partial(ops.accumulate_topk, grad, residual, k, hint, out=out, row=layout)
            timed["unpack and mean of 8"] = partial(ops.mean_of_rows, arrived, layout, mean)
        took_us = {name: _median_us(run, device) for name, run in timed.items()}
        for name, us in took_us.items():
            row: dict[str, Any] = {"case": f"{name}, {numel:,}", "kernels": kernels_of(device), "us": round(us, 1)}
            moved = {"copy": 8, "add": 12, "take": 12, "take and pack": 12}.get(name)
            if moved:
                row["GB/s"] = round(moved * numel / us / 1e3, 1)
                row["of the copy rate"] = round(moved / 8 * took_us["copy"] / us, 3)
            rows.append(row)
    last = {row["case"].partition(",")[0]: row for row in rows[-len(timed) :]}
    faster = last["torch.topk alone"]["us"] / last["take"]["us"]
    said = (
        f"{kernels_of(device)} at {numel:,} entries: take at {last['take']['of the copy rate']:.0%} of the copy rate, "
        f"{faster:.2f} times as fast as torch.topk alone"
    )
    return Answer(None, said, rows)


def _median_us(run: Callable[[], object], device: torch.device) -> float:
    for _ in range(3):
        run()
    if device.type != "cuda":
        times = []
        for _ in range(3):
            began = time.perf_counter()
            run()
            times.append(1e6 * (time.perf_counter() - began))
        return statistics.median(times)
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(_ROUNDS)]
    flushing = torch.empty(1 << 26, dtype=torch.int32, device=device)  # 256 MiB: more than any cache
    for begin, end in marks:
        flushing.zero_()
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize(device)
    return float(statistics.median(1e3 * begin.elapsed_time(end) for begin, end in marks))


# ---------------------------------------------------------------------- nccl: one worker, its rows repeated


def nccl(device: torch.device) -> Answer:
    """Take one bucket through the hook as 1, 8 and 64 workers would: bits, kernels launched, time."""
    rows = []
    numel = _BUCKET_NUMEL[device.type]
    with group(device):
        expected = train(torch.device("cpu"), numel=numel)
        for workers in (1, 8, 64):
            with _repeated(workers):
                right = _same(train(device, numel=numel), expected)
                host_us: list[float] = []
                train(device, numel=numel, steps=8, reducing=partial(_timed, host_us))
                row = {"case": f"{workers} workers", "right": right, "kernels": kernels_of(device)}
                row |= {"host us": round(statistics.median(host_us[2:])), **_profiled(device, numel)}
            rows.append(row)
    return _judged(rows, "numbers of workers give the bits of the CPU")


@contextlib.contextmanager
def _repeated(workers: int) -> Iterator[None]:
    """Let one worker's row arrive as often as if so many had sent it: their mean is its own, for powers of two."""
    plain = Communicator.all_gather

    def several(comm: Communicator, row: Tensor, **how: Any) -> Work[Tensor]:
        work = plain(comm, row, **how)
        return Work(work.works, work.result.expand(workers, -1), work.sent)

    with mock.patch.object(Communicator, "all_gather", several):
        yield


@contextlib.contextmanager
def _timed(took_us: list[float]) -> Iterator[None]:
    """Time what the host does; nothing in it waits."""
    began = time.perf_counter()
    yield
    took_us.append(1e6 * (time.perf_counter() - began))


def _profiled(device: torch.device, numel: int) -> dict[str, object]:
    """Count kernels and their time in one bucket of a step."""
    if device.type != "cuda":
        return {"launches": None, "device us": None}
    from torch.profiler import ProfilerActivity, profile

    records: list[Any] = []

    @contextlib.contextmanager
    def profiled() -> Iterator[None]:
        torch.cuda.synchronize(device)
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            records.append(recorded)
            yield
            torch.cuda.synchronize(device)

    train(device, numel=numel, reducing=profiled)
    there = [one for one in records[-1].events() if "CUDA" in str(one.device_type)]
    kernels = [one for one in there if not one.name.startswith(("Memcpy", "Memset"))]
    return {"launches": len(kernels), "device us": round(sum(one.time_range.elapsed_us() for one in there))}


# ---------------------------------------------------------------------- two ranks, on one card or two


def two_ranks(device: torch.device) -> Answer:
    """Let two processes exchange by every collective, and compare with two on the CPU."""
    os.environ.setdefault("NCCL_MULTI_RANK_GPU_ENABLE", "1")  # NCCL from 2.30 on takes two ranks on a card then
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes: Any = torch.multiprocessing
    answers = processes.get_context("spawn").SimpleQueue()
    try:
        processes.start_processes(_one_of_two, (device.type, port, answers), nprocs=2, start_method="spawn")
    except (processes.ProcessRaisedException, processes.ProcessExitedException) as error:
        sentence = str(error).strip().splitlines()[-1]
        return Answer(None, f"two processes could not train on {max(1, torch.cuda.device_count())} card: {sentence}")
    return _judged(answers.get(), "collectives give the bits of the CPU between two ranks")


def _one_of_two(rank: int, kind: str, port: int, answers: Any) -> None:
    device = torch.device("cpu") if kind == "cpu" else torch.device("cuda", rank % torch.cuda.device_count())
    torch.set_num_threads(1)
    rows = []
    with group(device, rank, 2, TCPStore("localhost", port, 2, is_master=rank == 0)):
        for collective in ("allgather", "split", "tree", "leader", "hierarchical:ranks_per_node=2", "dense"):
            numel = _NUMEL[kind] // 10
            here, there = (train(where, numel=numel, collective=collective) for where in (torch.device("cpu"), device))
            rows.append({"case": collective, "right": _same(there, here)})
    if rank == 0:
        answers.put(rows)


# ---------------------------------------------------------------------- graph


def graph(device: torch.device) -> Answer:
    """Capture selection and mean in a CUDA graph, and replay it on other gradients."""
    numel = _NUMEL[device.type]
    k = max(1, round(DENSITY * numel))
    grad, residual, out, mean = (torch.zeros(numel, device=device) for _ in range(4))
    wire = Wire("chunks", "bf16")
    layout = wire.row_format(k, numel)
    packs = isinstance(ops.accumulate_topk(grad, residual, k, out=out, row=layout), TakenRow)

    def once() -> None:
        taken = ops.accumulate_topk(grad, residual, k, out=out, row=layout)
        if isinstance(taken, TakenRow) and layout is not None:
            ops.mean_of_rows(taken.row.expand(2, -1), layout, mean)
        else:
            ops.scatter_mean([SparseGradient(taken.indices, taken.values, numel)] * 2, mean)

    try:
        replay = _captured(once, device)
    except RuntimeError as error:
        return Answer(None, f"selection and mean cannot be captured: {str(error).splitlines()[0]}")
    rows = []
    for step in range(5):
        gradient = _gradient(numel, step)
        grad.copy_(gradient)
        replay()
        expected, mean_there = torch.zeros(numel), torch.empty(numel)
        taken = ops.accumulate_topk(gradient, torch.zeros(numel), k, out=expected)
        sent = wire.round(taken.values) if packs else taken.values
        expected.index_add_(0, taken.indices, taken.values - sent)
        ops.scatter_mean([SparseGradient(taken.indices, sent, numel)] * 2, mean_there)
        rows.append({"case": f"replay {step}", "right": _same([out.cpu(), mean.cpu()], [expected, mean_there])})
    return _judged(rows, "replays of a captured selection and mean give the bits of the CPU")


def _captured(once: Callable[[], None], device: torch.device) -> Callable[[], None]:
    if device.type != "cuda":
        return once
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        once()
    torch.cuda.current_stream(device).wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        once()
    return captured.replay


PARTS = (
    Check("order", "Does anything read memory that was let go, or before it is there?", 60, order),
    Check("fault", "Would that have been seen?", 30, fault),
    Check("bits", "Do all ops and wires give the bits of the CPU?", 100, bits),
    Check("waits", "Does the host wait for the device only where the docs say so?", 60, waits),
    Check("speed", "How fast are the ops, against this card's memory and torch.topk?", 90, speed),
    Check("nccl", "What does a bucket cost with one worker, and as of 8 and 64?", 80, nccl),
    Check("two_ranks", "Do all collectives agree between two ranks on NCCL?", 60, two_ranks),
    Check("graph", "Can selection and mean be captured in a CUDA graph?", 30, graph),
)
"""In order of their worth, as long as there is time; each in a process of its own."""
