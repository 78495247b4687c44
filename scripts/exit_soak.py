"""End pairs of workers in every way, again and again, and look at the status that each ends with.

    python scripts/exit_soak.py --count 500 --amplified

Each pair trains a small model for some steps over Gloo and ends: by returning right after the last backward, after
``destroy_process_group``, by an exception in the last step of one of them, or by Ctrl-C (SIGINT to both). Counts the
pairs that end by a signal, do not end, or end with another status than the script asked for; ends with status 1 if
there are any. ``--amplified`` puts both workers on one core and lets the main thread keep the interpreter: what the
backend's threads still have to do then falls into the end of the process nearly every time. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter

import torch
import torch._dynamo  # the first DDP model imports it: once, before the workers are forked
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank

WAYS = ("allgather", "split", "leader", "tree", "hierarchical:ranks_per_node=1", "auto", "dense", "model")
ENDS = ("return", "destroy", "exception", "interrupt")
STEPS = 3
ASKED, INTERRUPTED, LOST = 3, 5, 6  # statuses that the workers ask for
LIMIT_S = 300.0


def train(rank: int, way: str, end: str, ready: int) -> None:
    """Train, and end in one of the ways; what it asks for goes through ``sys.exit``."""
    first = nn.Linear(100, 50)
    layers = nn.Sequential(first, nn.Linear(50, 10))
    model = DistributedDataParallel(layers, bucket_cap_mb=0.001)
    if way == "model":
        gaussiank.compress(model, 0.01, scope="model")
    elif way == "dense":
        gaussiank.compress(model, 1.0)
    else:
        gaussiank.compress(model, 0.01, collective=way)
    for step in range(10**9 if end == "interrupt" else STEPS):
        if step == STEPS - 1 and end == "exception" and rank == 0:
            first.weight.register_hook(fail)
        model(torch.randn(8, 100)).square().mean().backward()
        if step == 1:
            os.write(ready, b".")


def fail(grad: torch.Tensor) -> None:
    raise ArithmeticError("the last step of rank 0")


def work(rank: int, way: str, end: str, store: str, ready: int) -> None:
    """What the script of one worker is."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
        train(rank, way, end, ready)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except RuntimeError as error:  # the other one has ended
        sys.exit(INTERRUPTED if "KeyboardInterrupt" in str(error) else LOST)
    if end == "destroy":
        dist.destroy_process_group()
    sys.exit(ASKED)


def wanted(rank: int, end: str) -> set[int]:
    if end == "exception":
        return {1} if rank == 0 else {LOST}
    return {INTERRUPTED, LOST} if end == "interrupt" else {ASKED}


def run_pair(way: str, end: str) -> list[int | None]:
    """Run two workers and return the status of each; None for one that did not end."""
    store = f"{tempfile.mkdtemp()}/store"
    heard, ready = os.pipe()
    pids = []
    for rank in range(2):
        pid = os.fork()
        if not pid:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # tracebacks
            work(rank, way, end, store, ready)
        pids.append(pid)
    os.close(ready)
    if end == "interrupt":
        for _ in pids:
            os.read(heard, 1)
        time.sleep(random.uniform(0, 0.05))
        for pid in pids:
            os.kill(pid, signal.SIGINT)
    statuses = [status_of(pid) for pid in pids]
    os.close(heard)
    return statuses


def status_of(pid: int) -> int | None:
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="pairs of workers in all")
    parser.add_argument(
        "--amplified", action="store_true", help="one core, and a main thread that keeps the interpreter"
    )
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, metavar="WAY", help=f"among {', '.join(WAYS)}")
    parser.add_argument("--ends", nargs="+", default=ENDS, choices=ENDS, metavar="END", help=f"among {', '.join(ENDS)}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()  # or each worker looks, at its end, at all that was imported here
    if options.amplified:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        sys.setswitchinterval(1)
    bad: Counter[str] = Counter()
    for number in range(options.count):
        way = options.ways[number % len(options.ways)]
        end = options.ends[number // len(options.ways) % len(options.ends)]
        statuses = run_pair(way, end)
        if number % 50 == 49:
            print(f"{number + 1} pairs", flush=True)
        if any(status not in wanted(rank, end) for rank, status in enumerate(statuses)):
            bad[f"{way}, {end}"] += 1
            print(f"pair {number}: {way}, {end}: ended with {statuses}", flush=True)
    print(f"{options.count} pairs, {'amplified' if options.amplified else 'plain'}: {sum(bad.values())} ended wrongly")
    for case, count in sorted(bad.items()):
        print(f"  {count} of {case}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
