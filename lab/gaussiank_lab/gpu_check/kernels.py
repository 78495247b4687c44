"""How fast selection and mean are on one card, and whether a CUDA graph can hold them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.codec import Wire
from gaussiank.ops import TakenRow, accelerator
from gaussiank.sparse import SparseGradient
from gaussiank_lab.gpu_check.answer import DENSITY, NUMEL, WIRES, Answer, gradient_of, judged, same

_SPEED_NUMELS = {"cpu": (10_000,), "cuda": (1 << 20, 6_553_600, 25_600_000, 138_000_000)}
_ROUNDS = 20


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
        for wire in WIRES:
            layout = Wire.parse(wire).row_format(k, numel)
            pack = partial(ops.accumulate_topk, grad, residual, k, hint, out=out, row=layout)
            written = pack()
            if isinstance(written, TakenRow) and layout is not None:
                timed[f"take and pack {wire}"] = pack
                timed[f"unpack {wire} and mean of 8"] = partial(
                    ops.mean_of_rows, written.row.repeat(8, 1), layout, mean
                )
        took_us = {name: _median_us(run, device) for name, run in timed.items()}
        for name, us in took_us.items():
            row: dict[str, Any] = {"case": f"{name}, {numel:,}", "kernels": kernels_of(device), "us": round(us, 1)}
            moved = {"copy": 8, "add": 12, "take": 12}.get(name.partition(" and pack")[0])
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


def graph(device: torch.device) -> Answer:
    """Capture selection and mean in a CUDA graph, and replay it on other gradients."""
    rows = []
    for name in WIRES:
        try:
            rows += _replayed(device, Wire.parse(name))
        except RuntimeError as error:
            return Answer(None, f"selection and mean of {name} cannot be captured: {str(error).splitlines()[0]}")
    return judged(rows, "replays of a captured selection and mean give the bits of the CPU")


def _replayed(device: torch.device, wire: Wire) -> list[dict[str, Any]]:
    numel = NUMEL[device.type]
    k = max(1, round(DENSITY * numel))
    grad, residual, out, mean = (torch.zeros(numel, device=device) for _ in range(4))
    layout = wire.row_format(k, numel)
    packs = isinstance(ops.accumulate_topk(grad, residual, k, out=out, row=layout), TakenRow)

    def once() -> None:
        taken = ops.accumulate_topk(grad, residual, k, out=out, row=layout)
        if isinstance(taken, TakenRow) and layout is not None:
            ops.mean_of_rows(taken.row.expand(2, -1), layout, mean)
        else:
            ops.scatter_mean([SparseGradient(taken.indices, taken.values, numel)] * 2, mean)

    replay, rows = _captured(once, device), []
    for step in range(5):
        gradient = gradient_of(numel, step)
        grad.copy_(gradient)
        replay()
        expected, mean_there = torch.zeros(numel), torch.empty(numel)
        taken = ops.accumulate_topk(gradient, torch.zeros(numel), k, out=expected)
        sent = wire.round(taken.values) if packs else taken.values
        expected.index_add_(0, taken.indices, taken.values - sent)
        ops.scatter_mean([SparseGradient(taken.indices, sent, numel)] * 2, mean_there)
        rows.append({"case": f"{wire}, replay {step}", "right": same([out.cpu(), mean.cpu()], [expected, mean_there])})
    return rows


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
