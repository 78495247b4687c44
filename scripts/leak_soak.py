"""Train long and make many models, and look whether threads, open files and memory stay level.

    python scripts/leak_soak.py --steps 20000 --models 100

Two workers over Gloo take so many steps with each collective; then they make, train and drop so many models, some with
a process group of their own that is destroyed, some in a cycle that is collected late. What each worker holds is read
after the first tenth and at the end: threads and files must not grow, memory by 5 % at most. Ends with status 1 where
it does. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank

WAYS = ("allgather", "split", "leader", "tree", "hierarchical:ranks_per_node=1", "auto", "dense", "model")
MEMORY = 1.05  # times what was held after the first tenth, at most


class Held(NamedTuple):
    """What a process holds."""

    threads: int
    files: int
    mebibytes: float

    @classmethod
    def now(cls) -> Held:
        """Read it; what waits for Python's collector is none of it."""
        gc.collect()
        threads, files = (sum(1 for _ in Path("/proc/self", name).iterdir()) for name in ("task", "fd"))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(threads, files, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def grew(self, first: Held) -> bool:
        """Tell whether this is more than at first."""
        memory = self.mebibytes > MEMORY * first.mebibytes
        return self.threads > first.threads or self.files > first.files or memory


def watched(name: str, count: int, turn: Callable[[int], object]) -> bool:
    """Take ``count`` turns; prints what is held after the first tenth and at the end, and tells whether it grew."""
    first = Held.now()
    for number in range(count):
        turn(number)
        if number == count // 10 | 1:  # odd, as the last one
            first = Held.now()
    last = Held.now()
    if dist.get_rank() == 0:
        words = ", ".join(f"{a:.4g} -> {b:.4g} {what}" for a, b, what in zip(first, last, Held._fields, strict=True))
        print(f"{name}: {words}{'  GREW' if last.grew(first) else ''}", flush=True)
    return last.grew(first)


def compressed(way: str, group: dist.ProcessGroup | None = None) -> DistributedDataParallel:
    model = DistributedDataParallel(nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 10)), process_group=group)
    if way in ("dense", "model"):
        gaussiank.compress(model, 1.0 if way == "dense" else 0.01, scope="model" if way == "model" else "bucket")
    else:
        gaussiank.compress(model, 0.01, collective=way)
    return model


def step(model: DistributedDataParallel, _: int = 0) -> None:
    model(torch.randn(8, 200)).square().mean().backward()


def come_and_go(number: int) -> None:
    own = dist.new_group() if number % 2 else None
    model = compressed(WAYS[number % len(WAYS)], own)
    step(model)
    if number % 3 == 0:
        model.__dict__["cycle"] = model
    del model
    if own is not None:
        dist.destroy_process_group(own)


def work(rank: int, store: str, options: argparse.Namespace) -> bool:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    grew = False
    for way in options.ways:
        model = compressed(way)
        grew |= watched(f"{options.steps} steps of {way}", options.steps, partial(step, model))
        del model
    grew |= watched(f"{options.models} models", options.models, come_and_go)
    dist.destroy_process_group()
    return grew


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20000, help="of each collective")
    parser.add_argument("--models", type=int, default=100, help="made and dropped")
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS, metavar="WAY", help=f"among {', '.join(WAYS)}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store, pids = f"{tempfile.mkdtemp()}/store", []
    for rank in range(2):
        pid = os.fork()
        if not pid:
            sys.exit(work(rank, store, options))
        pids.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)


if __name__ == "__main__":
    sys.exit(main())
