"""Groups of our own: any history of making groups does no harm, and nothing stays when their models have gone."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from tests.distributed.conftest import Workers
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank.comm import group_timeout_s, groups, require_backend
from gaussiank.comm.communicator import settle


def one_step(group: dist.ProcessGroup | None, collective: str) -> float:
    """Return the mean, over a group, of ranks in it: the gradient of an input that is one."""
    model = DDP(nn.Linear(1, 1, bias=False), process_group=group)
    gaussiank.compress(model, 0.5, collective=collective, wire="raw+fp32")
    (model(torch.ones(1, 1)) * dist.get_rank(group)).sum().backward()
    assert model.module.weight.grad is not None
    return float(model.module.weight.grad)


def after_a_history(rank: int, world_size: int) -> list[float]:
    """Make groups that not all workers are in, then train in the default group and in sub-groups."""
    dist.new_group([0])
    dist.new_group([0, 1, 2])
    dist.new_group([2, 3])
    for _ in range(rank):
        dist.new_group([rank], use_local_synchronization=True)
    means = [one_step(None, way) for way in ("allgather", "split", "hierarchical:ranks_per_node=2")]
    halves = [dist.new_group([1, 2]), dist.new_group([0, 3])]
    own = halves[rank in (0, 3)]
    return [*means, *(one_step(own, way) for way in ("allgather", "hierarchical:ranks_per_node=1"))]


def test_any_history_of_making_groups_does_no_harm(four_workers: Workers) -> None:
    assert four_workers.run(after_a_history) == [[1.5, 1.5, 1.5, 0.5, 0.5]] * 4


def held() -> tuple[int, int]:
    """Return the threads and the open files of this process, once nothing is left of models that have gone."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "gaussiank exchange":  # it was told to stop, and lets go of its group at its end
            thread.join(5)
    settle(time.monotonic() + 5)  # callbacks hold groups until a thread of the backend drops them
    gc.collect()
    groups._free()
    threads, files = (sum(1 for _ in Path("/proc/self", name).iterdir()) for name in ("task", "fd"))
    return threads, files


def models_come_and_go(rank: int, world_size: int) -> list[tuple[int, int]]:
    """Make and drop models that have a group of their own or share one, some in a cycle that is collected late."""
    counts = []
    for number in range(4):
        own = dist.new_group()
        first = one_step(own, "hierarchical:ranks_per_node=1")
        second = one_step(None, "split" if number % 2 else "hierarchical:ranks_per_node=2")
        assert first == second == 0.5
        if rank == number % 2:
            gc.collect()
        dist.destroy_process_group(own)
        if number in (1, 3):
            counts.append(held())
    until = time.monotonic() + 10  # a backend's threads let go when they come to it
    while counts[-1] > counts[0] and time.monotonic() < until:
        time.sleep(0.05)
        counts[-1] = held()
    return counts


def test_groups_go_with_their_models(two_workers: Workers) -> None:
    for before, after in two_workers.run(models_come_and_go):
        assert after[0] <= before[0], (before, after)
        assert after[1] <= before[1] + 3, (before, after)  # a group has ten files; Python opens one now and then


def refuses_gloo_for_cuda(rank: int, world_size: int) -> None:
    """Futures of Gloo do not tell streams of a message before torch 2.11; nor do groups have a time-out of ours."""
    cuda, cpu = torch.device("cuda:0"), torch.device("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "__version__", "2.10.1+cu130")
        with pytest.raises(ValueError, match=r"process group must be of NCCL for parameters on cuda:0, got gloo with"):
            require_backend(None, {cuda})
        assert require_backend(None, {cpu}, 7.0) == cpu
        patch.setattr(torch, "__version__", "2.11.0a0+git123")
        assert require_backend(None, {cuda}, group_timeout_s()) == cuda
        with pytest.raises(ValueError, match="must be left out on cuda:0, got 7 for a process group of 60 s"):
            require_backend(None, {cuda}, 7.0)
    with pytest.raises(ValueError, match="model must have its parameters on one device, got cpu, cuda:0"):
        require_backend(None, {cuda, cpu})


def refuses_groups_that_nccl_would_wait_for(rank: int, world_size: int) -> None:
    """A default group with a device is split for new groups, by all of its ranks; those outside would never come."""
    some = dist.new_group([0, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "known_group", lambda _: SimpleNamespace(bound_device_id=0, size=lambda: 3))
        if rank < 2:
            with pytest.raises(ValueError, match="must be the default one for groups of its workers, got 2 of 3 ranks"):
                groups.groups_of(some, "hierarchical", [[0, 1]], 60.0)


def test_a_group_that_nccl_would_wait_for_is_refused(three_workers: Workers) -> None:
    three_workers.run(refuses_groups_that_nccl_would_wait_for)


def test_gloo_is_refused_for_cuda_where_its_means_arrive_too_early(two_workers: Workers) -> None:
    two_workers.run(refuses_gloo_for_cuda)
