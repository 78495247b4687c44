"""A process that ends while a backend still has to do with us ends with the status that it asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gaussiank

SRC = Path(str(gaussiank.__file__)).parent

SCRIPT = """
import os, sys, tempfile, time
import torch, torch._dynamo, torch.distributed as dist
import gaussiank

class Late:  # lets Python take its time to end
    def __del__(self, sleep=time.sleep):
        sleep(1)

late = Late()

def fail(grad):
    raise ArithmeticError("in the middle of a backward")

def train(way, rank, store):
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    layers = torch.nn.Sequential(torch.nn.Linear(100, 50), torch.nn.Linear(50, 10))
    model = torch.nn.parallel.DistributedDataParallel(layers, bucket_cap_mb=0.001)
    gaussiank.compress(model, collective=way)
    model(torch.ones(8, 100)).sum().backward()  # in one bucket; then DDP makes more
    layers[0].weight.register_hook(fail)
    loss = model(torch.ones(8, 100)).sum()
    time.sleep(0.3 * rank)  # so that rank 0 ends with a message under way, which arrives then
    try:
        loss.backward()
    except ArithmeticError:
        sys.exit(7 + rank)

pids = []
torch.set_num_threads(1)
for way in ("allgather", "split"):
    store = f"file://{tempfile.mkdtemp()}/store"
    for rank in range(2):
        if not (pid := os.fork()):
            train(way, rank, store)
        pids.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
"""


def test_a_worker_that_ends_with_messages_under_way_ends_as_it_asked() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True)
    assert ended.stdout.strip() == "[7, 8, 7, 8]", ended.stderr


def test_torch_gets_callbacks_in_one_way_alone() -> None:
    given = {
        path.relative_to(SRC).as_posix(): len(re.findall(r"\.then\(", path.read_text())) for path in SRC.rglob("*.py")
    }
    assert {name: count for name, count in given.items() if count} == {"comm/communicator.py": 1}
