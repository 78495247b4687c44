"""Whether every op and every wire gives the bits of the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gaussiank import ops
from gaussiank.codec import HEADER_BYTES, INDEX_CODES, KERNEL_WIRES, VALUE_CODES, Wire
from gaussiank.ops import TakenRow
from gaussiank.sparse import SparseGradient
from gaussiank_lab.gpu_check.answer import DENSITY, Answer, judged, same


def bits(device: torch.device) -> Answer:
    """Run every op and every wire on the device and on the CPU."""
    rows = [{"case": name, "right": right} for name, right in (*_rows(device), *_ops(device), *_wires(device))]
    return judged(rows, "ops and wires give the bits of the CPU")


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


def _rows(device: torch.device) -> Iterator[tuple[str, bool]]:
    """Rows that three workers write and read, by kernels where there are some."""
    for numel, k in ((5000, 79),) if device.type == "cpu" else ((70_001, 1101), (3_000_001, 3001)):
        generator = torch.Generator().manual_seed(numel)
        vectors = torch.randn(6, numel, generator=generator)
        for name in KERNEL_WIRES:
            here, there = (_exchanged(Wire.parse(name), vectors.to(where), k) for where in ("cpu", device))
            yield f"rows of {name}, {numel}", same([one.cpu() for one in there], here)


def _exchanged(wire: Wire, vectors: Tensor, k: int) -> list[Tensor]:
    """Return each worker's payload without its header, and its residual; then the mean."""
    numel = vectors.shape[1]
    layout, hint, rows, found = wire.row_format(k, numel), None, [], []
    assert layout is not None
    for grad, residual in zip(vectors[::2], vectors[1::2], strict=True):
        out = torch.empty_like(residual)
        taken = ops.accumulate_topk(grad, residual, k, hint, out=out, row=layout)
        hint = taken.hint  # the first has none, so that both ways of a selection are gone
        if isinstance(taken, TakenRow):
            row = taken.row
        else:
            row, _, error = wire.pack(SparseGradient(taken.indices, taken.values, numel), capacity=k)
            if error is not None:
                out.index_add_(0, taken.indices, error)
        rows.append(row[: layout.used])
        found += [rows[-1][HEADER_BYTES:], out]
    mean = torch.empty_like(out)
    finite = ops.mean_of_rows(torch.stack(rows), layout, mean)
    if finite is None:
        finite = ops.scatter_mean([wire.decode(row, numel, capacity=k) for row in rows], mean)
    return [*found, mean, finite]


def _ops(device: torch.device) -> Iterator[tuple[str, bool]]:
    for name, grad, residual in _vectors(device):
        k = max(1, round(DENSITY * grad.numel()))
        here, there = (_results(grad.to(where), residual.to(where), k) for where in (torch.device("cpu"), device))
        for op, expected in here.items():
            yield f"{op}, {name}", same(there[op], expected)


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
                yield f"wire {wire}", same([one.cpu() for one in there], here)


def _through(wire: Wire, indices: Tensor, values: Tensor, numel: int, room: int) -> list[Tensor]:
    rounded = wire.round(values)
    payload = wire.encode(SparseGradient(indices, rounded, numel), capacity=room)
    back = wire.decode(payload, numel, dtype=torch.float32, capacity=room)
    by_cpu = wire.decode(payload.cpu(), numel, dtype=torch.float32, capacity=room)
    kept = indices.numel()
    return [rounded, back.indices[:kept], back.values[:kept], by_cpu.indices[:kept], by_cpu.values[:kept]]
