"""Measures our own work on this worker: selection, encoding, decoding, merging."""

from __future__ import annotations

import statistics
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank import ops
from gaussiank.autotune import parse_policy
from gaussiank.codec import Wire, default_wire
from gaussiank.compressors import COMPRESSORS, parse_compressor
from gaussiank.layout import Layout
from gaussiank.reducer import GradientReducer, Settings
from gaussiank.schedule import Constant
from gaussiank.sparse import SparseGradient

from .probe_file import EXCHANGES, MEASURED_DENSITY, Points
from .stopwatch import Effort, median_s, now

PARTS = 4
WARM_STEPS = 2


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
        {"vector": numel}, Settings(Constant(MEASURED_DENSITY), compressor, wire=wire), group=alone
    )
    generator = torch.Generator(device).manual_seed(0)
    for _ in range(WARM_STEPS + effort.least):
        grad.normal_(generator=generator)
        reducer.begin()
        reducer.reduce_sparse(layout, [grad]).wait()
        reducer.seal()
        taken.append(reducer.measured.select_s)
    return statistics.median(taken[WARM_STEPS:])  # the first has no hint, and its pages are new


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
    )
    for _ in range(WARM_STEPS + 3 * effort.least):
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
    return statistics.median(taken[WARM_STEPS:])


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
