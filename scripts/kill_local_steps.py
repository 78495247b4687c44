"""Kill local steps with SIGKILL at random moments, resume them each time, and compare the bits they end with.

    python scripts/kill_local_steps.py --count 100

Two workers train a small model with ``gaussiank.LocalSteps`` and save at every second step, under one of four settings
in turn. At a random moment one worker is killed, and a little later the other, unless it has ended by itself; then both
begin again and load what was saved. Ends with status 1 at the first run whose weights end with other bits than those of
a run that nobody killed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import multiprocessing as mp
import os
import random
import signal
import tempfile
import time
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import gaussiank

STEPS = 40
WORKERS = 2
LIMIT_S = 120
SETTINGS: list[dict[str, Any]] = [
    {"sync_every": 6, "fragments": 3, "sync_delay": 3, "collective": "split"},
    {"sync_every": 5},
    {"sync_every": 4, "fragments": 2, "sync_delay": 2, "mixing": 0.5, "compressor": "gaussiank"},
    {"sync_every": 3, "density": 1.0, "sync_delay": 1, "wire": "rice+8bit"},
]


def train(rank: int, folder: str, number: int, attempt: int, doomed: bool) -> None:
    """Train from what was saved, or from the start, and write a digest of the final weights."""
    if doomed:  # what it says when the other is gone is no news
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{attempt}"
    timeout = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORKERS, timeout=timeout)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 60), nn.BatchNorm1d(60), nn.Tanh(), nn.Linear(60, 60), nn.Linear(60, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    local = gaussiank.LocalSteps(model, optimizer, **SETTINGS[number])
    saved = Path(folder, "saved")
    if (saved / "local.json").exists():
        local.load(saved)
        Path(folder, f"resumed-{rank}").write_text(str(local.steps))
    while local.steps < STEPS:
        inputs = torch.randn(8, 20, generator=torch.Generator().manual_seed(1000 * rank + local.steps))
        optimizer.zero_grad()
        (model(inputs) - inputs[:, :1].sin()).square().mean().backward()
        optimizer.step()
        local.step()
        if local.steps % 2 == 0:
            local.save(saved)
    local.finish()
    state = hashlib.sha256()
    for one in (*model.parameters(), *(local.residual(name) for name in local.agreed())):
        state.update(one.detach().numpy().tobytes())
    Path(folder, f"digest-{rank}").write_text(state.hexdigest())
    dist.destroy_process_group()


def begin(folder: Path, number: int, attempt: int, *, doomed: bool = False) -> list[BaseProcess]:
    context = mp.get_context("forkserver")
    workers: list[BaseProcess] = []
    for rank in range(WORKERS):
        worker = context.Process(target=train, args=(rank, str(folder), number, attempt, doomed), daemon=True)
        worker.start()
        workers.append(worker)
    return workers


def whole(folder: Path, number: int, attempt: int) -> tuple[list[str], float]:
    """Run to the end; returns the digests of all workers, and the seconds from the first save on."""
    workers = begin(folder, number, attempt)
    began = await_save(folder, workers)
    for worker in workers:
        worker.join(LIMIT_S)
    if any(worker.exitcode != 0 for worker in workers):
        raise SystemExit(f"a run that nobody killed ended with {[worker.exitcode for worker in workers]}")
    return [Path(folder, f"digest-{rank}").read_text() for rank in range(WORKERS)], time.monotonic() - began


def kill(worker: BaseProcess) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join(LIMIT_S)


def await_save(folder: Path, workers: list[BaseProcess]) -> float:
    """Wait for the first save; returns when it was there."""
    while not (folder / "saved" / "local.json").exists() and all(worker.exitcode is None for worker in workers):
        time.sleep(0.002)
    return time.monotonic()


def killed(folder: Path, number: int, seconds: float, chosen: random.Random) -> str:
    """Start a run and kill it after its first save; returns who was killed, or nothing where the run had ended."""
    workers = begin(folder, number, 0, doomed=True)
    await_save(folder, workers)
    time.sleep(chosen.uniform(0, seconds))
    victim = chosen.randrange(WORKERS)
    ended = workers[victim].exitcode is not None
    kill(workers[victim])
    other = workers[1 - victim]
    other.join(chosen.choice((0, 0.05, 0.5)))
    kill(other)
    return "" if ended else f"worker {victim}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="resumed runs (100)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims (0)")
    arguments = parser.parse_args()
    chosen = random.Random(arguments.seed)
    mp.get_context("forkserver").set_forkserver_preload(["torch", "torch._dynamo", "gaussiank"])
    expected: dict[int, list[str]] = {}
    seconds: dict[int, float] = {}
    resumed = tried = 0
    while resumed < arguments.count:
        number = resumed % len(SETTINGS)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if number not in expected:
                expected[number], seconds[number] = whole(folder, number, 0)
                print(f"{SETTINGS[number]}: {seconds[number]:.1f} s from the first save to the end", flush=True)
                continue
            tried += 1
            victim = killed(folder, number, seconds[number], chosen)
            if not victim:
                continue
            found, _ = whole(folder, number, 1)
            at = Path(folder, "resumed-0").read_text()
            if found != expected[number]:
                raise SystemExit(f"{SETTINGS[number]}: {victim} killed, resumed from step {at}: OTHER BITS, {found}")
            resumed += 1
            print(f"{resumed}: {victim} killed, resumed from step {at}; the same bits", flush=True)
    print(f"{resumed} of {tried} runs were killed after a save and resumed, each to the same bits")


if __name__ == "__main__":
    main()
