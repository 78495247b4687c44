"""What does a round of LocalSteps send beside its payloads? Counted by the kernel in a network of its own, as root.

Each worker sends its payload, and a note of 32 bytes, to each other one; frames of Gloo and TCP come on top. Rounds 3
to 10 of a vector of 100,000 entries; bytes of a barrier between them are taken off.

    python benchmarks/round_bytes.py --workers 2 4 8
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

import gaussiank

ROUNDS, SKIPPED, QUIET_S, INSIDE = 10, 2, 0.05, "GAUSSIANK_ROUND_BYTES"
SPAWN = multiprocessing.get_context("spawn")


def counted() -> int:
    """Return the bytes that loopback has carried, once it is quiet."""
    time.sleep(QUIET_S)
    (line,) = [one for one in Path("/proc/self/net/dev").read_text(encoding="utf-8").splitlines() if " lo:" in one]
    return int(line.split()[1])


def measure(rank: int, workers: int, folder: str) -> None:
    """Play rounds; rank 0 writes, for each, the bytes of all workers, of a barrier, and of its own payloads."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    model = torch.nn.Linear(1000, 100, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    local = gaussiank.LocalSteps(model, optimizer, sync_every=1)
    rows = []
    for _ in range(ROUNDS):
        model.weight.grad = torch.randn(100, 1000)
        optimizer.step()
        dist.barrier()
        places = [counted()]
        local.step()
        dist.barrier()
        places.append(counted())
        dist.barrier()
        places.append(counted())
        rows.append([places[1] - places[0], places[2] - places[1], local.metrics.sent_bytes])
    if rank == 0:
        torch.save(torch.tensor(rows), f"{folder}/rows.pt")
    dist.destroy_process_group()


def main() -> None:
    """Measure each number of workers, and print a row of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    counts = parser.parse_args().workers
    if INSIDE not in os.environ:
        script = 'ip link set lo up; exec "$@"'
        command = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, *sys.argv]
        raise SystemExit(subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode)
    print("| workers | payloads | beside them | to each other worker |\n|---|---|---|---|")
    for workers in counts:
        with tempfile.TemporaryDirectory() as folder:
            processes = [SPAWN.Process(target=measure, args=(rank, workers, folder)) for rank in range(workers)]
            for one in processes:
                one.start()
            for one in processes:
                one.join()
            rows = torch.load(f"{folder}/rows.pt")[SKIPPED:].tolist()
        beside = statistics.median((whole - barrier) / workers - payload for whole, barrier, payload in rows)
        payload = statistics.median(row[2] for row in rows)
        print(f"| {workers} | {payload:,.0f} | {beside:,.0f} | {beside / (workers - 1):,.0f} |")


if __name__ == "__main__":
    main()
