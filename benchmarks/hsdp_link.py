"""FSDP2 between two nodes on a slow link: torch's own dense HSDP against ``compress``, in one run.

Two nodes of two workers, each node a network namespace of its own with one link of the given rate; needs Linux, root,
``ip`` and ``tc``. A third figure is FSDP2 inside each node, with nothing sent between them: no exchange takes less.

    python benchmarks/hsdp_link.py --rate 100mbit --check
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gaussiank
from gaussiank_lab.bench.net import links

WIDTH, LAYERS, PORT, TARGET = 2048, 6, 29577, 20.0
NODES, PER_NODE = 2, 2


def step_times(density: float | None, steps: int, *, keep: bool, apart: bool = False) -> list[float]:
    """Train a model of 25 million parameters; returns the seconds of each step.

    Args:
        density: of ``compress``, or None for torch's dense HSDP.
        steps: that are timed, after two that are not.
        keep: leave parameters gathered between forward and backward.
        apart: leave out what goes between the nodes.
    """
    mesh = init_device_mesh("cpu", (NODES, PER_NODE), mesh_dim_names=("replicate", "shard"))
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(LAYERS)]
    model: Any = nn.Sequential(*layers)
    for module in (*layers, model):
        inside = mesh if density is None and not apart else mesh["shard"]
        fully_shard(module, mesh=inside, reshard_after_forward=not keep)
    if density is not None:
        kept = gaussiank.compress(model, density, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs = torch.randn(4, WIDTH)
    taken = []
    for _ in range(steps + 2):
        dist.barrier()
        began = time.perf_counter()
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        taken.append(time.perf_counter() - began)
    assert density is None or kept.metrics.calls == LAYERS
    return taken[-steps:]


def work(rank: int, steps: int, density: float, keep: bool, answers: Any) -> None:
    """Measure in one rank, in the network of its node."""
    os.environ["GLOO_SOCKET_IFNAME"] = links.DEVICE
    torch.set_num_threads(1)
    url = f"tcp://{links.address(0)}:{PORT}"
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=NODES * PER_NODE)
    found = (
        step_times(None, max(2, steps // 3), keep=keep),
        step_times(density, steps, keep=keep),
        step_times(None, steps, keep=keep, apart=True),
    )
    if rank == 0:
        answers.put([statistics.median(times) for times in found])
    dist.barrier()
    dist.destroy_process_group()


def node(number: int, orders: Connection, chosen: argparse.Namespace, answers: Any) -> None:
    """Be a node: a network of its own, and its workers in it."""
    links.leave_network()
    orders.send(os.getpid())
    orders.recv()
    links.connect(number)
    links.shape(links.DEVICE, links.parse_rate(chosen.rate))
    context = mp.get_context("spawn")
    ranks = range(number * PER_NODE, (number + 1) * PER_NODE)
    told = (chosen.steps, chosen.density, chosen.keep_gathered, answers)
    workers = [context.Process(target=work, args=(rank, *told)) for rank in ranks]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def main() -> None:
    """Lay the link, run both, and print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="100mbit", help="of each node's link: 100mbit, 1gbit, unshaped")
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--steps", type=int, default=6, help="sparse steps that are timed; of dense ones a third")
    parser.add_argument("--keep-gathered", action="store_true", help="leave parameters gathered after forward")
    parser.add_argument("--check", action="store_true", help=f"end with status 1 below {TARGET:.0f} times")
    chosen = parser.parse_args()
    if reason := links.missing():
        sys.exit(f"nodes must have networks of their own, got none: {reason}.")
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    hub = context.Process(target=links.serve_hub, args=(theirs, os.getpid()), daemon=True)
    hub.start()
    ours.recv()
    answers, pipes, nodes = context.Queue(), [], []
    for number in range(NODES):
        mine, its = context.Pipe()
        pipes.append(mine)
        nodes.append(context.Process(target=node, args=(number, its, chosen, answers)))
        nodes[-1].start()
    for order in ([pipe.recv() for pipe in pipes], links.parse_rate(chosen.rate)):
        ours.send(order)
        if error := ours.recv():
            sys.exit(f"the link must be laid, got: {error}")
    for pipe in pipes:
        pipe.send("go")
    dense, sparse, apart = answers.get(timeout=400)
    for one in nodes:
        one.join()
    ratio, load = dense / sparse, os.getloadavg()[0]
    print("| link | dense HSDP, s a step | compressed | nothing between nodes | faster | load of the machine |")
    print("|---|---|---|---|---|---|")
    print(f"| {chosen.rate} | {dense:.2f} | {sparse:.3f} | {apart:.3f} | {ratio:.1f}x | {load:.1f} |")
    sys.exit(1 if chosen.check and ratio < TARGET else 0)


if __name__ == "__main__":
    main()
