"""How many functions, in how many files of ours, does a bucket pass through in one step, there and back?

One bucket on two workers, after some steps; every Python function of the package that is entered is counted, in the
thread of backward and in those that run callbacks; comprehensions are not. It has to be small for the reader's sake.

    python benchmarks/step_trace.py                      # a table for some settings
    python benchmarks/step_trace.py --files              # and which functions by default, file by file
    python benchmarks/step_trace.py --check              # exit code 1 above 100 functions or 20 files by default
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import gaussiank

COMPREHENSIONS = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>")
PACKAGE = str(Path(gaussiank.__file__).parent)
MOST_FUNCTIONS, MOST_FILES = 100, 20
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "gaussiank, raw": {"compressor": "gaussiank", "wire": "raw+fp32"},
    "split": {"collective": "split"},
    "model": {"scope": "model"},
    "momentum": {"momentum": gaussiank.MomentumCorrection(0.9)},
    "dense": {"compressor": "dense"},
}


class Trace:
    """Count calls of our functions, in whatever thread they run."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str, int]] = Counter()
        self.changes = 0
        self._file = ""
        self.on = False

    def note(self, frame: Any, event: str, _: Any) -> None:
        """What Python calls at each call."""
        code = frame.f_code
        ours = event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name not in COMPREHENSIONS
        if self.on and ours:
            file = code.co_filename[len(PACKAGE) + 1 :]
            self.calls[file, code.co_qualname, code.co_firstlineno] += 1
            self.changes += file != self._file
            self._file = file

    def watch_callbacks(self) -> None:
        """Threads of a backend are none of Python's own: the trace is set where they enter a callback."""
        then = torch._C.Future.then

        def watched(future: Any, callback: Callable[[Any], Any]) -> Any:
            def traced(done: Any) -> Any:
                before = sys.getprofile()
                sys.setprofile(self.note)
                try:
                    return callback(done)
                finally:
                    sys.setprofile(before)

            return then(future, traced)

        torch._C.Future.then = watched  # type: ignore[method-assign,assignment]  # in this process alone


def work(rank: int, store: str, how: dict[str, Any], answer: Any) -> None:
    import threading

    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trace = Trace()
    threading.setprofile(trace.note)
    trace.watch_callbacks()
    model = DistributedDataParallel(torch.nn.Linear(1000, 100))
    gaussiank.compress(model, 0.001, **how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(6):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 1000)).square().mean()
        trace.on = step == 5
        sys.setprofile(trace.note if trace.on else None)
        loss.backward()
        optimizer.step()
        sys.setprofile(None)
    trace.on = False
    dist.barrier()
    if rank == 0:
        answer.put((dict(trace.calls), trace.changes))
    dist.destroy_process_group()


def traced(how: dict[str, Any]) -> tuple[dict[tuple[str, str, int], int], int]:
    context = mp.get_context("fork")
    answer = context.Queue()
    with tempfile.TemporaryDirectory() as place:
        processes = [
            context.Process(target=work, args=(rank, f"file://{place}/store", how, answer)) for rank in range(2)
        ]
        for process in processes:
            process.start()
        calls, changes = answer.get(timeout=60)
        for process in processes:
            process.join()
    return calls, changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", action="store_true", help="list the functions, file by file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the default step is above its limits")
    arguments = parser.parse_args()
    missed = False
    for name, how in SETTINGS.items():
        calls, changes = traced(how)
        files = sorted({file for file, _, _ in calls})
        counted = f"{sum(calls.values())} calls, {len(calls)} functions, {len(files)} files"
        print(f"{name:>15}: {counted}, {changes} changes of file")
        if arguments.files:
            for file in files:
                print(f"    {file}: " + ", ".join(sorted(function for one, function, _ in calls if one == file)))
        if name == "default":
            missed = len(calls) > MOST_FUNCTIONS or len(files) > MOST_FILES
    sys.exit(1 if arguments.check and missed else 0)


if __name__ == "__main__":
    main()
