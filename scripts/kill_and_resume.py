"""Kill a short run with SIGKILL at random moments, resume it each time, and compare the bits it ends with.

    python scripts/kill_and_resume.py --count 100

Each round starts the same run anew (two workers, two methods, a checkpoint every third step), kills its launcher or one
of its workers at a random moment, waits for the others to end, resumes, and compares the digests of all final
parameters with those of a run that nobody killed. Ends with status 1 at the first difference. Linux only: it finds the
workers in /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GAUSSIANK = [sys.executable, "-m", "gaussiank", "train"]
SETTINGS = shlex.split(
    "--model fnn3 --workers 2 --steps 24 --eval-steps 8 --batch-size 16 --density 0.01 --momentum-correction "
    "--methods topk,gaussiank --precision bf16 --ema 0.9 --checkpoint-every 3 --keep 2 --timeout-s 60"
)
LIMIT_S = 300


def start(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*GAUSSIANK, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=LIMIT_S)
    if process.returncode:
        raise SystemExit(f"a run that nobody killed ended with status {process.returncode}:\n{output}")


def digests(run_dir: Path) -> dict[str, str]:
    lines = (run_dir / "records.jsonl").read_text().splitlines()
    return {row["method"]: row["digest"] for row in map(json.loads, lines) if row["kind"] == "method"}


def workers_of(launcher: int) -> list[int]:
    """Return what the launcher, or the server that workers are forked from, has started to work."""
    servers = [pid for pid in children_of(launcher) if "forkserver" in command_of(pid)]
    found = [pid for server in servers for pid in children_of(server)]
    return found or [pid for pid in children_of(launcher) if "spawn_main" in command_of(pid)]


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def await_file(process: subprocess.Popen[str], path: Path) -> None:
    while process.poll() is None and not path.exists():
        time.sleep(0.02)


def kill_one(process: subprocess.Popen[str], chosen: random.Random) -> str:
    """Kill the launcher or a worker, and wait until all have ended; returns who it was."""
    workers = workers_of(process.pid)
    victim = chosen.choice([process.pid, *workers])
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    deadline = time.monotonic() + LIMIT_S
    while any(command_of(pid) for pid in workers):
        if time.monotonic() > deadline:
            raise SystemExit(f"workers {workers} outlived their launcher by {LIMIT_S} s")
        time.sleep(0.02)
    return "launcher" if victim == process.pid else f"worker {workers.index(victim)} of {len(workers)}"


def last_place(run_dir: Path) -> str:
    places = sorted(path.name for path in (run_dir / "checkpoints").glob("[0-9]*"))
    return places[-1] if places else ""


def round_of_death(run_dir: Path, seconds: float, chosen: random.Random, *, resumable: bool) -> str:
    """Start a run, kill it, resume it; returns what happened. ``resumable``: not before its first checkpoint."""
    process = start(*SETTINGS, "--out", str(run_dir))
    await_file(process, run_dir / "records.jsonl")
    began = time.monotonic()
    while resumable and process.poll() is None and not last_place(run_dir):
        time.sleep(0.02)
    time.sleep(chosen.uniform(0, max(0.0, seconds - (time.monotonic() - began))))
    if process.poll() is not None:
        return "ended before it could be killed"
    victim, at = kill_one(process, chosen), last_place(run_dir)
    if not at:
        shutil.rmtree(run_dir)
        finish(start(*SETTINGS, "--out", str(run_dir)))
        return f"{victim} killed before the first checkpoint, begun anew"
    finish(start("--resume", str(run_dir)))
    return f"{victim} killed, resumed from {at}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="resumed runs (100)")
    parser.add_argument("--resumable", action="store_true", help="kill none before its first checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims (0)")
    arguments = parser.parse_args()
    chosen = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        process = start(*SETTINGS, "--out", str(whole))
        await_file(process, whole / "records.jsonl")
        began = time.monotonic()
        while (
            process.poll() is None
            and '"kind": "method", "method": "gaussiank"' not in (whole / "records.jsonl").read_text()
        ):
            time.sleep(0.02)
        seconds = time.monotonic() - began  # without the report, where there is nothing left to lose
        finish(process)
        expected = digests(whole)
        print(f"a whole run trains for {seconds:.1f} s and ends with {expected}", flush=True)
        resumed = number = 0
        while resumed < arguments.count:
            number += 1
            run_dir = Path(folder, f"run-{number}")
            happened = round_of_death(run_dir, seconds, chosen, resumable=arguments.resumable)
            found = digests(run_dir)
            if found != expected:
                raise SystemExit(f"{number}: {happened}; it ended with OTHER BITS: {found}")
            resumed += "resumed" in happened
            print(f"{number}: {happened}; the same bits", flush=True)
            shutil.rmtree(run_dir)
    print(f"{resumed} runs killed and resumed, each to the same bits")


if __name__ == "__main__":
    main()
