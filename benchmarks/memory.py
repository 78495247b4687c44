"""What compression keeps in memory, in bytes a parameter, against the same training without it.

Counted, not timed: all tensors that are alive between two steps, and the peak of torch's allocations within one, as its
profiler tells them. DDP's buckets have 4 MiB here, a layer each, so that they are to this model what 25 MiB are to one
of 26 million parameters. ``--check`` ends with status 1 where both together are above a row's target.

    python benchmarks/memory.py --check
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing as mp
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import gaussiank

WIDTH, LAYERS, WORKERS = 1024, 4, 4


@dataclass(frozen=True)
class Case:
    """A way to train, what it is compared with, and what it may cost.

    Args:
        name: of the row.
        shards: workers that share a copy of the model; 0 for DDP.
        how: given to ``compress``; None for dense training.
        optimizer: of torch.
        limit: largest number of bytes a parameter of this worker, or None.
    """

    name: str
    shards: int = 0
    how: dict[str, Any] | None = None
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    limit: float | None = None
    settings: dict[str, Any] = field(default_factory=lambda: {"lr": 1e-3})


NARROW: dict[str, Any] = {"residual_dtype": torch.bfloat16}
ROWS: dict[str, Any] = {"precondition": gaussiank.AdamRows(), "scope": "layer"}
CASES = [
    Case("DDP"),
    Case("FSDP2, 2 shards", 2),
    Case("DDP, compress()", how={}, limit=8.2),
    Case("DDP, residual_dtype=bfloat16", how=NARROW, limit=4.2),
    Case("DDP, MomentumCorrection", how={"momentum": gaussiank.MomentumCorrection(0.9)}, limit=16.4),
    Case("DDP, AdamW without compression", optimizer=torch.optim.AdamW),
    Case("DDP, AdamRows: optimizer, residual and moments", how=ROWS, limit=8.2),
    Case("DDP, AdamRows, residual_dtype=bfloat16", how={**ROWS, **NARROW}, limit=4.2),
    Case("FSDP2, 2 shards, compress()", 2, how={}, limit=8.2),
    Case("FSDP2, 2 shards, residual_dtype=bfloat16", 2, how=NARROW, limit=4.2),
    Case("FSDP2, 2 shards, AdamRows", 2, how=ROWS, limit=8.2),
]


def model_of(case: Case) -> tuple[nn.Module, int, Any]:
    """Return a model as a case wraps it, the parameters of this worker, and its mesh."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(LAYERS)]
    model = nn.Sequential(*layers)
    if not case.shards:
        return (
            DistributedDataParallel(model, bucket_cap_mb=4, gradient_as_bucket_view=True),
            sum(one.numel() for one in model.parameters()),
            None,
        )
    mesh = init_device_mesh("cpu", (WORKERS // case.shards, case.shards), mesh_dim_names=("replicate", "shard"))
    inner = mesh["shard"] if case.how is not None else mesh
    for layer in layers:
        fully_shard(layer, mesh=inner)
    fully_shard(model, mesh=inner)
    return model, sum(one._local_tensor.numel() for one in model.parameters()), mesh  # type: ignore[attr-defined]


def held_bytes() -> int:
    """Return the bytes of all tensors that are alive, each memory once, and of a larger one what is used."""
    gc.collect()
    found: dict[int, tuple[int, int]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thing in gc.get_objects():
            if issubclass(type(thing), Tensor) and not thing.is_meta and thing.numel():
                local = getattr(thing, "_local_tensor", thing)
                storage, start = local.untyped_storage(), local.storage_offset() * local.itemsize
                end = start + local.numel() * local.itemsize
                low, high = found.get(storage.data_ptr(), (start, end))
                found[storage.data_ptr()] = min(low, start), max(high, end)
    return sum(high - low for low, high in found.values())


def peak_bytes(step: Callable[[], None]) -> tuple[int, int]:
    """Return the largest sum of what torch's allocator has handed out in a step, and the largest piece of it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    kineto: Any = recorded.profiler.kineto_results
    events = [one for one in kineto.events() if one.name() == "[memory]"]
    now = peak = largest = 0
    for one in sorted(events, key=lambda one: one.start_ns()):
        now += one.nbytes()
        peak, largest = max(peak, now), max(largest, one.nbytes())
    return peak, largest


def measure(case: Case) -> dict[str, float]:
    """Train some steps; return what is held between steps and what a step takes beside it, in bytes."""
    model, parameters, mesh = model_of(case)
    if case.how is not None:
        compression = gaussiank.compress(model, density=0.001, mesh=mesh, **case.how)
    optimizer = case.optimizer(model.parameters(), **case.settings)
    inputs = torch.randn(2, WIDTH)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    for _ in range(4):
        step()
    peak, largest = peak_bytes(step)
    result: dict[str, float] = {"parameters": parameters, "held": held_bytes(), "peak": peak, "largest": largest}
    if case.how is not None:
        assert compression.metrics.kept < compression.metrics.numel
    return result


def work(rank: int, store: str, answers: Any) -> None:
    """Measure every case in one process group; rank 0 answers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORKERS)
    found: dict[str, dict[str, float]] = {}
    before = held_bytes()
    for how in ({}, NARROW):  # what is made once a process, whatever is trained
        measure(Case("first", how=how))
    found["once"] = {"held": held_bytes() - before}
    for case in CASES:
        before = held_bytes()
        own = measure(case)
        found[case.name] = {**own, "held": own["held"] - before}
    if rank == 0:
        answers.put(found)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Measure every case, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="end with status 1 where a row is above its target")
    parser.add_argument("--json", type=Path, help="write the counts to a file too")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = mp.get_context("spawn")
    answers, store = context.Queue(), f"file://{tempfile.mkdtemp()}/store"
    workers = [context.Process(target=work, args=(rank, store, answers), daemon=True) for rank in range(WORKERS)]
    for worker in workers:
        worker.start()
    found = answers.get(timeout=400)
    for worker in workers:
        worker.join()
    missed = show(found)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(1 if chosen.check and missed else 0)


def show(found: dict[str, dict[str, float]]) -> list[str]:
    """Print the table; returns the rows above their targets."""
    missed = []
    print("| training | held between steps | more in a step, at its peak | largest allocation in it | at most |")
    print("|---|---|---|---|---|")
    for case in CASES:
        own, plain = found[case.name], found["FSDP2, 2 shards" if case.shards else "DDP"]
        count = own["parameters"]
        held, peak = ((own[key] - plain[key]) / count for key in ("held", "peak"))
        reached = case.limit is None or held + max(0.0, peak) <= case.limit
        missed += [] if reached else [case.name]
        limit = "" if case.limit is None else f"{case.limit:.1f}{'' if reached else ' MISSED'}"
        print(f"| {case.name} | {held:.2f} | {peak:+.2f} | {own['largest'] / count:.2f} | {limit} |")
    print(f"bytes for each of {int(found['DDP']['parameters']):,} parameters, or of a worker's shard of them")
    print(f"once a process, not in the table: {found['once']['held'] / 1e6:.2f} MB of working memory for the kernels")
    return missed


if __name__ == "__main__":
    main()
