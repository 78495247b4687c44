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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch._C._distributed_c10d import HashStore, Store, TCPStore  # torch.distributed shows them at run time only

from gaussiank.codec import Wire
from gaussiank.collectives import parse_collective
from gaussiank.comm import Communicator, Work
from gaussiank.compressors import COMPRESSORS, parse_compressor
from gaussiank.layout import Layout
from gaussiank.reducer import GradientReducer, Settings
from gaussiank.schedule import Constant
from gaussiank_lab.gpu_check.answer import DENSITY, NUMEL, WIRES, Answer, Check, gradient_of, judged, same
from gaussiank_lab.gpu_check.bits import bits
from gaussiank_lab.gpu_check.kernels import graph, kernels_of, speed

_SLEEP_CYCLES = 200_000_000  # of a GPU's clock: a tenth of a second
_LAUNCHES = 8  # of a bucket, NCCL's included
_BUCKET_NUMEL = {"cpu": 10_000, "cuda": 6_553_600}  # of DDP's 25 MiB


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
    wire: str = WIRES[0],
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
        wire: how entries travel.
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
        wire=Wire.parse(wire),
        scope=scope,
    )
    parameters = dict(zip(layout.names, layout.numels, strict=True))
    reducer = GradientReducer(parameters, settings, device=device)
    ends = []
    for step in range(steps):
        whole = gradient_of(numel, step).to(device)
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


# ---------------------------------------------------------------------- order: memory, streams


def order(device: torch.device) -> Answer:
    """Delay every message on the device, overwrite by NaN what was let go meanwhile, and compare with a CPU."""
    numel = NUMEL[device.type]
    ways = [("topk", "bucket"), ("topk", "layer"), ("topk", "model"), ("gaussiank", "bucket"), ("dense", "bucket")]
    rows = []
    with group(device), _late_messages(device):
        expected = {way: train(torch.device("cpu"), numel=numel, compressor=way[0], scope=way[1]) for way in ways}
        overwrite = partial(_overwrite, device, numel)
        for way in ways:
            got = train(device, numel=numel, compressor=way[0], scope=way[1], hooked=overwrite)
            rows.append({"case": f"{way[0]}, scope {way[1]}", "right": same(got, expected[way])})
    return judged(rows, "ways give the bits of the CPU, with messages late and freed memory overwritten")


def fault(device: torch.device) -> Answer:
    """Let nobody hold what messages still use, and see whether that is found as ``order`` looks for it."""
    numel, how = NUMEL[device.type], "seen"
    try:
        with group(device), _late_messages(device), mock.patch.object(GradientReducer, "_hold", new=_let_go):
            expected = train(torch.device("cpu"), numel=numel, scope="model")
            got = train(device, numel=numel, scope="model", hooked=partial(_overwrite, device, numel))
            how = "NOT seen, so that part proves little" if same(got, expected) else "seen"
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


# ---------------------------------------------------------------------- waits

_WAITLESS = ("topk", "trimmedtopk", "dense")


def waits(device: torch.device) -> Answer:
    """Count how often the hook lets the host wait for the device, and where."""
    rows = []
    with group(device):
        for name, wire in (*((name, WIRES[0]) for name in COMPRESSORS), ("topk", WIRES[1])):
            steps: list[list[str]] = []
            watched = partial(_watched, device, steps)
            train(device, numel=NUMEL[device.type], compressor=name, wire=wire, reducing=watched)
            found = [place for step in steps[1:] for place in step]  # the first one makes NCCL's communicator
            row = {"case": f"{name}, {wire}", "right": name not in _WAITLESS or not found, "waits": len(found) // 2}
            rows.append({**row, "at": ", ".join(sorted(set(found)))})
    return judged(rows, "compressors wait for the device only where docs/gpu.md says so")


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


# ---------------------------------------------------------------------- nccl: one worker, its rows repeated


def nccl(device: torch.device) -> Answer:
    """Take one bucket through the hook as 1, 8 and 64 workers would: bits, kernels launched, time."""
    rows = []
    numel = _BUCKET_NUMEL[device.type]
    with group(device):
        for wire in WIRES:
            expected = train(torch.device("cpu"), numel=numel, wire=wire)
            for workers in (1, 8, 64):
                with _repeated(workers):
                    right = same(train(device, numel=numel, wire=wire), expected)
                    host_us: list[float] = []
                    train(device, numel=numel, wire=wire, steps=8, reducing=partial(_timed, host_us))
                    row: dict[str, Any] = {
                        "case": f"{workers} workers, {wire}",
                        "right": right,
                        "kernels": kernels_of(device),
                    }
                    row |= {"host us": round(statistics.median(host_us[2:])), **_profiled(device, numel, wire)}
                    few = row["kernels"] != "triton" or row["launches"] <= _LAUNCHES
                rows.append({**row, "right": right and few})
    return judged(rows, f"numbers of workers give the bits of the CPU, in {_LAUNCHES} launches by the kernels")


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


def _profiled(device: torch.device, numel: int, wire: str) -> dict[str, object]:
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

    train(device, numel=numel, wire=wire, reducing=profiled)
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
    return judged(answers.get(), "collectives give the bits of the CPU between two ranks")


def _one_of_two(rank: int, kind: str, port: int, answers: Any) -> None:
    device = torch.device("cpu") if kind == "cpu" else torch.device("cuda", rank % torch.cuda.device_count())
    torch.set_num_threads(1)
    rows = []
    with group(device, rank, 2, TCPStore("localhost", port, 2, is_master=rank == 0)):
        for collective in ("allgather", "split", "tree", "leader", "hierarchical:ranks_per_node=2", "dense"):
            numel = NUMEL[kind] // 10
            here, there = (train(where, numel=numel, collective=collective) for where in (torch.device("cpu"), device))
            rows.append({"case": collective, "right": same(there, here)})
    if rank == 0:
        answers.put(rows)


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
