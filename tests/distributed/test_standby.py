"""While ``auto`` is dense, DDP reduces without our hook; the hook comes and goes with what there is to select."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.distributed.test_whole import ALWAYS_DENSE, SIZES, Given, fed, step_of
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank.collectives import Link, pilot, ring_bytes

NAMES = [f"weights.{number}" for number in range(len(SIZES))]
SLOW_LINK = "auto:mbit=1:latency_us=10"
Run = tuple[list[bool], Tensor, Tensor, Tensor, list[int]]


def small_buckets(*, view: bool = False, **more: Any) -> DDP:
    return DDP(Given(), bucket_cap_mb=0.001, gradient_as_bucket_view=view, **more)


def beside_plain_ddp(rank: int, world_size: int, scope: str) -> None:
    ours, theirs = small_buckets(), small_buckets()
    compression = gaussiank.compress(ours, collective=ALWAYS_DENSE, scope=scope)
    numel = sum(SIZES)
    for step in range(6):
        assert torch.equal(step_of(ours, rank, step), step_of(theirs, rank, step))
        measured = compression.metrics
        assert (measured.step, measured.numel, measured.k, measured.kept) == (step, numel, numel, numel)
        assert measured.sent_bytes == measured.dense_bytes == ring_bytes(torch.zeros(numel), world_size)
        assert measured.density == 0.001
        assert compression.step == step + 1
        assert compression.stands_by
    assert not ours._comm_hooks
    assert compression.state_dict()["step"] == 6


@pytest.mark.parametrize("scope", ["bucket", "layer", "model"])
def test_an_auto_that_is_dense_is_plain_ddp(workers: Any, scope: str) -> None:
    workers.run(beside_plain_ddp, scope)


def train(model: DDP, compression: gaussiank.Compression, rank: int, steps: int) -> Run:
    """Returns whether it stood by before each step, the sum of the means, what this worker gave, what it kept, and how
    many entries it sent in each step."""
    mean, given, standing = torch.zeros(sum(SIZES)), torch.zeros(sum(SIZES)), []
    sent = []
    for step in range(steps):
        standing.append(compression.stands_by)
        assert bool(model._comm_hooks) != standing[-1]
        mean += step_of(model, rank, step)
        given += torch.cat(fed(rank, step))
        assert compression.metrics.step == step
        sent.append(compression.metrics.kept)
    return standing, mean, given, compression.feedback.residuals(NAMES), sent


def assert_nothing_lost(results: list[Run]) -> None:
    given, kept = (torch.stack([result[part] for result in results]).sum(0) for part in (2, 3))
    torch.testing.assert_close(len(results) * results[0][1] + kept, given, rtol=0, atol=2e-5)
    assert all(torch.equal(mean, results[0][1]) for _, mean, *_ in results)


SLOW_WORK = "auto:mbit=1:latency_us=10:touch_ns=1e5:message_us=0"  # sparse pays at density 0.05, not at 0.9
HOW: list[dict[str, Any]] = [
    {},
    {"scope": "layer"},
    {"scope": "model"},
    {"compressor": "gaussiank"},
    {"collective": SLOW_WORK},
]


def sparse_in_between(rank: int, world_size: int, how: dict[str, Any], view: bool) -> Run:
    model = small_buckets(view=view)
    sparse_steps = (3, 4, 5, 10, 11)
    how = {"collective": SLOW_LINK, **how}
    most = 1.0 if how["collective"] == SLOW_LINK else 0.9
    how["density"] = lambda step: 0.05 if step in sparse_steps else most
    return train(model, gaussiank.compress(model, **how), rank, 12)


@pytest.mark.parametrize("view", [False, True], ids=["copied", "view"])
@pytest.mark.parametrize("how", HOW, ids=str)
def test_the_hook_comes_and_goes_and_loses_nothing(two_workers: Any, how: dict[str, Any], view: bool) -> None:
    results = two_workers.run(sparse_in_between, how, view)
    # the first dense step takes the residual along, the second one shows that nothing is kept
    standing = [True] * 3 + [False] * 5 + [True] * 2 + [False] * 2
    assert [result[0] for result in results] == [standing] * 2
    assert_nothing_lost(results)
    assert results[0][3].any()
    assert all((kept == sum(SIZES)) == (step not in (3, 4, 5, 10, 11)) for step, kept in enumerate(results[0][4]))


def on_a_changing_link(rank: int, world_size: int, slow: list[int]) -> Run:
    """The link alone is made up, and so that one way takes seconds; what follows from it is exchanged and decided."""
    fast, slower = Link(1e-5, 1e12, 1e-2, 1e-5), Link(1e-5, 1e2, 1e-9, 1e-5)
    model = small_buckets()
    compression = gaussiank.compress(model, density=0.05, collective="auto:mbit=1e6:message_us=1e9")
    course = compression._journey._course
    course.collective = replace(course.collective, message_us=0, link=fast, pilot=pilot.Pilot(10))
    look, pilot.look_again = pilot.look_again, lambda line, last: slower if compression.step in slow else fast
    often, pilot._LOOKING = pilot._LOOKING, 1e3  # share of the time, so that it looks every ten steps
    try:
        return train(model, compression, rank, 150)
    finally:
        pilot.look_again, pilot._LOOKING = look, often


def test_workers_put_the_hook_on_and_off_together_when_the_link_changes(workers: Any) -> None:
    results = workers.run(on_a_changing_link, [*range(35, 75), *range(115, 150)])
    changes = [step for step in range(1, 150) if results[0][0][step] != results[0][0][step - 1]]
    assert len(changes) == (3 if workers.world_size > 1 else 0)
    assert all(36 + 40 * i <= change <= 60 + 40 * i for i, change in enumerate(changes))
    assert all(standing == results[0][0] for standing, *_ in results)
    assert all(results[0][4][step] < sum(SIZES) for step in changes[::2])
    assert_nothing_lost(results)


def accumulating(rank: int, world_size: int) -> tuple[list[int], Tensor, Tensor]:
    model = small_buckets()
    compression = gaussiank.compress(model, collective=ALWAYS_DENSE)
    steps = []
    for step in range(6):
        if step % 3 < 2:
            with model.no_sync():
                model(fed(rank, step)).backward()
        else:
            model(fed(rank, step)).backward()
        steps.append(compression.step)
        if step == 2:
            mean = model.module.grads().clone()
    return steps, mean, sum((torch.cat(fed(rank, step)) for step in range(3)), torch.zeros(sum(SIZES)))


def test_only_synchronized_backwards_count(two_workers: Any) -> None:
    results = two_workers.run(accumulating)
    assert [steps for steps, _, _ in results] == [[0, 0, 1, 1, 1, 2]] * 2
    torch.testing.assert_close(2 * results[0][1], results[0][2] + results[1][2], rtol=0, atol=1e-5)


def joined(rank: int, world_size: int) -> tuple[int, int, Tensor, Tensor]:
    model = small_buckets()
    compression = gaussiank.compress(model, collective=ALWAYS_DENSE)
    given, mean = torch.zeros(sum(SIZES)), torch.zeros(sum(SIZES))
    assert compression.stands_by
    with model.join():
        assert not compression.stands_by
        for step in range(2 + rank):
            mean += step_of(model, rank, step)
            given += torch.cat(fed(rank, step))
    within = compression.step
    step_of(model, rank, 9)
    return within, compression.step, mean, given


def test_workers_that_may_join_early_have_the_hook_and_count_alike(three_workers: Any) -> None:
    results = three_workers.run(joined)
    assert [result[:2] for result in results] == [(4, 5)] * 3
    torch.testing.assert_close(3 * results[-1][2], sum(result[3] for result in results), rtol=0, atol=2e-5)


def with_a_loaded_state(rank: int, world_size: int) -> Run:
    before, after = small_buckets(), small_buckets()
    sparse = gaussiank.compress(before, density=0.05)
    dense = gaussiank.compress(after, density=0.05, collective=ALWAYS_DENSE)
    mean = sum((step_of(before, rank, step) for step in range(2)), torch.zeros(sum(SIZES)))
    standing = [dense.stands_by]
    dense.load_state_dict(sparse.state_dict())
    for step in range(2, 5):
        standing.append(dense.stands_by)
        mean += step_of(after, rank, step)
        assert dense.step == step + 1
    given = sum((torch.cat(fed(rank, step)) for step in range(5)), torch.zeros(sum(SIZES)))
    return [*standing, dense.stands_by], mean, given, dense.feedback.residuals(NAMES), []


def test_a_loaded_residual_puts_the_hook_on_until_it_is_out(two_workers: Any) -> None:
    results = two_workers.run(with_a_loaded_state)
    # then DDP builds its buckets anew, so a third step is the first that repeats the one before
    assert [result[0] for result in results] == [[True, False, False, False, True]] * 2
    assert_nothing_lost(results)
    assert not results[0][3].any()


def ever_stood_by(rank: int, world_size: int, how: dict[str, Any], ddp: dict[str, Any], of_its_own: bool) -> bool:
    if of_its_own:
        ddp = {**ddp, "process_group": torch.distributed.new_group()}
    model = small_buckets(**ddp)
    compression = gaussiank.compress(model, collective=ALWAYS_DENSE, **how)
    return any(train(model, compression, rank, 4)[0])


@pytest.mark.parametrize(
    ("how", "ddp"),
    [
        ({"on_nonfinite": "raise"}, {}),
        ({"momentum": gaussiank.MomentumCorrection()}, {}),
        ({"compressor": "dense:values=bf16"}, {}),
        ({}, {"static_graph": True}),
    ],
    ids=["raise", "momentum", "rounded", "static graph"],
)
def test_what_needs_the_hook_has_it(two_workers: Any, how: dict[str, Any], ddp: dict[str, Any]) -> None:
    assert two_workers.run(ever_stood_by, how, ddp, False) == [False] * 2


def test_a_group_of_its_own_stands_by_from_the_start(two_workers: Any) -> None:
    assert two_workers.run(ever_stood_by, {}, {}, True) == [True] * 2


def with_another_hook(rank: int, world_size: int) -> str:
    model = small_buckets()
    schedule = {"density": lambda step: 1.0 if step < 2 else 0.05, "collective": SLOW_LINK}
    compression = gaussiank.compress(model, **schedule)
    step_of(model, rank, 0)
    assert compression.stands_by
    model.register_comm_hook(None, torch.distributed.algorithms.ddp_comm_hooks.default_hooks.allreduce_hook)
    try:
        step_of(model, rank, 1)
    except RuntimeError as error:
        return str(error)
    return ""


def test_another_hook_in_the_meantime_is_refused(two_workers: Any) -> None:
    for message in two_workers.run(with_another_hook):
        assert message.startswith("model must have no communication hook yet, got one that has a hook.")
