"""Real worker processes: one group for each world size, forked from a server, and kept for a file of tests."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import multiprocessing as mp
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

GROUP_TIMEOUT_S = 60  # a collective that hangs fails its test after this
WORLD_SIZES = (1, 2, 3, 4)
# imported once, in the server that all workers are forked from: 18 workers that import for themselves take a minute of
# processor time; torch._dynamo and its sympy are what the first DDP model imports
PRELOADED = ["torch", "torch._dynamo", "torch.distributed.device_mesh", "numpy", "pytest", "gaussiank"]


MORE_GROUPS = 4  # than there were, before those that nobody holds are looked for
_held = [1]


def _leave_groups() -> None:
    """Destroy the groups of earlier cases' models: each has three threads of Gloo, which wake a hundred times a second.

    All workers have ended those cases, because every answer is awaited before the next order.
    """
    from torch.distributed.distributed_c10d import _world

    from gaussiank.comm.groups import _free

    if len(_world.pg_map) > _held[0] + MORE_GROUPS:
        gc.collect()  # a model and its hook hold each other
        _free()
        _held[0] = len(_world.pg_map)


def _work(rank: int, world_size: int, store: str, orders: Connection) -> None:
    import datetime
    import warnings

    import torch
    import torch.distributed as dist

    gc.freeze()  # what torch consists of: to look through it in every collection takes a third of a second
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=GROUP_TIMEOUT_S)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=timeout)
    modules: dict[str, Any] = {}
    while (order := orders.recv()) is not None:
        path, name, arguments = order
        _leave_groups()
        try:
            if path not in modules:
                spec = importlib.util.spec_from_file_location(Path(path).stem, path)
                assert spec is not None
                assert spec.loader is not None
                modules[path] = sys.modules[Path(path).stem] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(modules[path])
            torch.manual_seed(1234 + rank)
            orders.send((True, getattr(modules[path], name)(rank, world_size, *arguments)))
        except BaseException:  # noqa: BLE001  whatever it is, the test must show it
            orders.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Workers:
    """Runs a top-level function ``f(rank, world_size, *arguments)`` of a test file on every worker."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        store = f"file://{tempfile.mkdtemp()}/store"
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(rank, world_size, store, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return what each rank returned; fail with the first traceback when one raised."""
        for pipe in self._pipes:
            pipe.send((function.__code__.co_filename, function.__name__, arguments))
        answers = [pipe.recv() for pipe in self._pipes]
        for rank, (passed, answer) in enumerate(answers):
            if not passed:
                pytest.fail(f"rank {rank} of {self.world_size}:\n{answer}", pytrace=False)
        return [answer for _, answer in answers]

    def run_some(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return what each rank returned, None for one that was killed; fail with the first traceback otherwise."""
        for pipe in self._pipes:
            pipe.send((function.__code__.co_filename, function.__name__, arguments))
        answers: list[Any] = []
        for rank, pipe in enumerate(self._pipes):
            try:
                passed, answer = pipe.recv()
            except (EOFError, ConnectionResetError):
                passed, answer = True, None
            if not passed:
                pytest.fail(f"rank {rank} of {self.world_size}:\n{answer}", pytrace=False)
            answers.append(answer)
        return answers

    def stop(self) -> None:
        """End the processes, those that are left."""
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.send(None)
        for process in self._processes:
            process.join()


@pytest.fixture(scope="module")  # a fork costs a fifth of a second; an idle worker's groups of Gloo wake it for ever
def worker_groups() -> Iterator[dict[int, Workers]]:
    groups: dict[int, Workers] = {}
    yield groups
    for group in groups.values():
        group.stop()


@pytest.fixture(params=(1, 2, 4), ids=lambda n: f"{n}workers")  # three have tests of their own, and the contract
def workers(request: pytest.FixtureRequest, worker_groups: dict[int, Workers]) -> Workers:
    return worker_groups.get(request.param) or _started(worker_groups, request.param)


@pytest.fixture(params=(*WORLD_SIZES, 8), ids=lambda n: f"{n}workers")
def contract_workers(request: pytest.FixtureRequest, worker_groups: dict[int, Workers]) -> Workers:
    return worker_groups.get(request.param) or _started(worker_groups, request.param)


@pytest.fixture
def two_workers(worker_groups: dict[int, Workers]) -> Workers:
    return worker_groups.get(2) or _started(worker_groups, 2)


@pytest.fixture
def three_workers(worker_groups: dict[int, Workers]) -> Workers:
    return worker_groups.get(3) or _started(worker_groups, 3)


@pytest.fixture
def four_workers(worker_groups: dict[int, Workers]) -> Workers:
    return worker_groups.get(4) or _started(worker_groups, 4)


def _started(groups: dict[int, Workers], world_size: int) -> Workers:
    groups[world_size] = Workers(world_size)
    return groups[world_size]
