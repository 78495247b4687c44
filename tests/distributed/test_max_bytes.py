"""``max_bytes`` is the longest message from one worker to another, counted where it leaves, for every collective."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from tests.distributed.test_collectives import SPECS, joined
from tests.distributed.test_hook import Given, feed
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank.codec import Wire
from gaussiank.collectives import AllGather, entries_within
from gaussiank.comm import Communicator, Executor, all_reduce_bytes
from gaussiank.sparse import SparseGradient

CHECKED = [
    *(spec for spec in SPECS if spec != "dense"),
    "hierarchical:inside=dense:ranks_per_node=1",
    "dense",
]
WIRES = ["rice+bf16-rice", "chunks+bf16", "eliasfano+fp32"]


@contextlib.contextmanager
def messages() -> Iterator[list[int]]:
    """Note the bytes of every message to another worker; of a ring, all that goes to the next one."""
    sizes: list[int] = []

    def noting(name: str, size: Callable[..., int], owner: type = Communicator) -> Any:
        original = getattr(owner, name)

        def method(line: Any, *arguments: Any, **more: Any) -> Any:
            sizes.append(size(line, *arguments))
            return original(line, *arguments, **more)

        return mock.patch.object(owner, name, method)

    def whole(line: Any, tensor: torch.Tensor, *_: Any) -> int:
        return tensor.numel() * tensor.element_size()

    with contextlib.ExitStack() as stack:
        for name in ("all_gather", "broadcast", "sendrecv", "send"):
            stack.enter_context(noting(name, whole))
        stack.enter_context(noting("all_to_all", lambda line, rows: whole(line, rows[0])))
        stack.enter_context(noting("all_to_all_uneven", lambda line, rows, _: max(whole(line, row) for row in rows)))
        stack.enter_context(noting("all_reduce", lambda line, vector, *_: all_reduce_bytes(vector, line.world_size)))
        average = noting(
            "average", lambda executor, _, vector, *__: all_reduce_bytes(vector, executor._world_size), Executor
        )
        stack.enter_context(average)
        yield sizes


NUMEL = 1076


def exchanged(rank: int, world_size: int) -> list[tuple[str, int, int]]:
    """Exchange as many entries as fit the least budget, and a larger one: what, the budget, the longest message."""
    found = []
    generator = torch.Generator().manual_seed(rank)
    for spec in CHECKED:
        collective = joined(spec, world_size)
        for wire, dtype in itertools.product(map(Wire.parse, WIRES), (torch.float32, torch.float64)):
            vector = [torch.zeros(NUMEL, dtype=dtype)]
            with pytest.raises(ValueError, match="max_bytes must be at least") as raised:
                entries_within(1, collective, wire, vector, world_size, layers=False)
            told = re.search(r"at least (\d+), the longest message of ", str(raised.value))
            assert told
            for budget in (int(told[1]), int(told[1]) + 333):
                capacity = entries_within(budget, collective, wire, vector, world_size, layers=False)
                hint = None
                with messages() as sizes:
                    for step, kept in enumerate((capacity, capacity, capacity // 2, capacity)):
                        indices = torch.randperm(NUMEL, generator=generator)[:kept].sort().values.int()
                        values = (9 * torch.randn(kept, generator=generator, dtype=dtype)).exp()
                        values[:1] = torch.inf if step == 3 and rank == 0 else 1.0
                        message = collective.start(
                            SparseGradient(indices, values, NUMEL),
                            wire=wire,
                            capacity=capacity,
                            step=step,
                            hint=hint,
                            take_more=lambda at, dtype=dtype: torch.zeros(at.numel(), dtype=dtype),
                        )
                        hint = message.finish(torch.empty(NUMEL, dtype=dtype)).hint
                found.append((f"{spec} {wire} {dtype}", budget, max(sizes)))
    return found


def test_a_budget_counts_what_rows_are_filled_up_with() -> None:
    how = (AllGather(), Wire("raw", "fp32"))
    for budget in (128, 255, 256, 383):
        here, there = (
            entries_within(budget, *how, [torch.zeros(500, device=device)], 4, layers=False)
            for device in ("cpu", "meta")
        )
        assert here == (budget - 20) // 8
        assert there == (budget // 128 * 128 - 20) // 8
    with pytest.raises(ValueError, match="max_bytes must be at least 128, the longest message of AllGather with one"):
        entries_within(127, *how, [torch.zeros(500, device="meta")], 4, layers=False)


def test_no_message_of_an_exchange_is_longer_than_asked(three_workers: Any, four_workers: Any) -> None:
    for group in (three_workers, four_workers):
        of_all = list(zip(*group.run(exchanged), strict=True))
        for results in of_all:
            for what, budget, most in results:
                assert most <= budget, what
        for spec in CHECKED:  # and the bound is near
            assert any(most > 0.9 * told for results in of_all for what, told, most in results if what.startswith(spec))


def trained(rank: int, world_size: int) -> list[tuple[str, int, int]]:
    """Train with a budget that all but the first asks less than: scope, the budget, the longest message."""
    found = []
    for spec, scope, density in (("allgather", "layer", 0.9), ("tree", "model", 0.3), ("split", "bucket", 1.0)):
        model, budget = DDP(Given()), 400
        gaussiank.compress(model, density, max_bytes=budget, scope=scope, collective=spec)
        with messages() as sizes:
            for step in range(4):
                model.zero_grad()
                fed = {name: (3 * grad).exp() * grad.sign() for name, grad in feed(rank, step).items()}
                if step == 2 and rank == 0:
                    fed["third"][7] = torch.inf
                model(fed).backward()
        found.append((f"{spec} {scope}", budget, max(sizes)))
    return found


def test_no_message_of_training_is_longer_than_asked(three_workers: Any) -> None:
    for results in three_workers.run(trained):
        for what, budget, most in results:
            assert 0.5 * budget < most <= budget, what


def measuring(rank: int, world_size: int) -> None:
    told = (
        "max_bytes must be at least 4194304, the longest message of Auto with one entry, got 20000. Raise it, or take"
    )
    for spec in ("auto", "auto:candidates=allgather"):
        with pytest.raises(ValueError, match=told):
            gaussiank.compress(DDP(Given()), max_bytes=20_000, collective=spec)


def test_a_measured_link_takes_more(two_workers: Any) -> None:
    """Its messages are up to 4 MiB long."""
    two_workers.run(measuring)
