"""Steps that send everything repeat the one before, and are the same steps as those that do not."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from tests.each import each
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank.autotune import Link, tuner
from gaussiank.comm import all_reduce_bytes

SIZES = (300, 512, 64)
ALWAYS_DENSE = "auto:mbit=1e6:message_us=1e9"


class Given(nn.Module):
    """A model whose gradients are what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(size) for size in SIZES)

    def forward(self, fed: list[Tensor]) -> Tensor:
        return torch.stack([(weight * grad).sum() for weight, grad in zip(self.weights, fed, strict=True)]).sum()

    def grads(self) -> Tensor:
        return torch.cat([weight.grad for weight in self.weights if weight.grad is not None])


def fed(rank: int, step: int) -> list[Tensor]:
    """Multiples of 1/64, so that sums over steps and workers are exact."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(size, generator=generator).mul(64).round().div(64) for size in SIZES]


def step_of(model: DDP, rank: int, step: int) -> Tensor:
    model.zero_grad()
    model(fed(rank, step)).backward()
    return model.module.grads()


def repeats(compression: gaussiank.Compression) -> bool:
    return bool(compression._reducer._dense.expected)


def small_buckets(**more: Any) -> DDP:
    return DDP(Given(), bucket_cap_mb=0.001, **more)


def beside_ddp(rank: int, world_size: int, how: dict[str, Any]) -> None:
    ours, theirs = small_buckets(), small_buckets()
    theirs.register_comm_hook(None, default_hooks.allreduce_hook)
    compression = gaussiank.compress(ours, **how)
    for step in range(6):
        assert torch.equal(step_of(ours, rank, step), step_of(theirs, rank, step))
        measured, numel = compression.metrics, sum(SIZES)
        assert (measured.step, measured.numel, measured.k, measured.kept) == (step, numel, numel, numel)
        assert measured.sent_bytes == measured.dense_bytes == all_reduce_bytes(torch.zeros(numel), world_size)
        assert measured.exchange_s > 0
        assert compression.step == step + 1
    assert repeats(compression)


@each(
    "how", [{"density": 1.0}, {"compressor": "dense"}, {"collective": ALWAYS_DENSE}], ids=["density", "dense", "auto"]
)
def test_repeated_steps_are_ddps_all_reduce_to_the_bit(workers: Any, how: dict[str, Any]) -> None:
    workers.run(beside_ddp, how)


def of_a_schedule(rank: int, world_size: int, scope: str) -> tuple[list[bool], Tensor, Tensor, Tensor]:
    model = small_buckets()
    compression = gaussiank.compress(model, density=lambda step: 0.05 if 4 <= step < 7 else 1.0, scope=scope)
    mean, given, repeating = torch.zeros(sum(SIZES)), torch.zeros(sum(SIZES)), []
    for step in range(12):
        mean += step_of(model, rank, step)
        given += torch.cat(fed(rank, step))
        repeating.append(repeats(compression))
    names = [f"weights.{number}" for number in range(len(SIZES))]
    return repeating, mean, given, compression.feedback.residuals(names)


@each("scope", ["bucket", "layer", "model"])
def test_a_sparse_step_ends_the_repetition_and_loses_nothing(workers: Any, scope: str) -> None:
    results = workers.run(of_a_schedule, scope)
    for repeating, mean, _, residual in results:
        assert repeating[2:4] == [True, True]  # DDP builds its buckets anew after the first step
        assert repeating[4:8] == [False] * 4  # sparse steps, and the one that takes the residual along
        assert repeating[8:] == [True] * 4
        assert not residual.any()
        assert torch.equal(mean, results[0][1])
    total = sum((given for _, _, given, _ in results), torch.zeros(sum(SIZES)))
    torch.testing.assert_close(len(results) * results[0][1], total, rtol=0, atol=2e-5)


def with_a_loaded_state(rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    before, after = small_buckets(), small_buckets()
    sparse, dense = gaussiank.compress(before, density=0.05), gaussiank.compress(after, density=1.0)
    mean = sum((step_of(before, rank, step) for step in range(2)), torch.zeros(sum(SIZES)))
    for step in range(2, 5):
        step_of(after, rank, step)
    assert repeats(dense)
    dense.load_state_dict(sparse.state_dict())
    mean += step_of(after, rank, 2)
    return mean, sum((torch.cat(fed(rank, step)) for step in range(3)), torch.zeros(sum(SIZES)))


def test_a_loaded_residual_goes_out_with_the_next_step(workers: Any) -> None:
    results = workers.run(with_a_loaded_state)
    total = sum((given for _, given in results), torch.zeros(sum(SIZES)))
    torch.testing.assert_close(len(results) * results[0][0], total, rtol=0, atol=2e-5)


def of_auto_for_the_whole_model(rank: int, world_size: int) -> tuple[int, bool]:
    model = small_buckets()
    compression = gaussiank.compress(model, density=0.05, collective=ALWAYS_DENSE, scope="model")
    for step in range(5):
        mean = step_of(model, rank, step)
        expected = sum((torch.cat(fed(other, step)) for other in range(world_size)), torch.zeros(sum(SIZES)))
        torch.testing.assert_close(world_size * mean, expected, rtol=0, atol=2e-5)
    return len(compression._reducer._plan._asked), repeats(compression)


def test_a_whole_models_choice_is_asked_once_a_step(workers: Any) -> None:
    assert workers.run(of_auto_for_the_whole_model) == [(1, True)] * workers.world_size


def on_a_changing_link(rank: int, world_size: int, slow: list[int]) -> tuple[list[bool], Tensor, Tensor]:
    """The link alone is made up, and so that one way takes seconds; what follows from it is exchanged and decided."""
    fast, slower = Link(1e-5, 1e12, 1e-2, 1e-5), Link(1e-5, 1e2, 1e-9, 1e-5)
    model = small_buckets()
    compression = gaussiank.compress(model, density=0.05, collective=ALWAYS_DENSE)
    plan = compression._reducer._plan
    plan.policy, plan.tuner = replace(plan.policy, message_us=0, link=fast), tuner.Tuner(10)
    probe, tuner.remeasure = tuner.remeasure, lambda line, last: slower if compression.step in slow else fast
    often, tuner._PROBE_SHARE = tuner._PROBE_SHARE, 1e3  # of the time, so that it probes every ten steps
    whole, rest = [], torch.zeros(sum(SIZES))
    try:
        for step in range(150):
            rest += torch.cat(fed(rank, step)) - step_of(model, rank, step)
            whole.append(compression.metrics.kept == sum(SIZES))
    finally:
        tuner.remeasure, tuner._PROBE_SHARE = probe, often
    return whole, rest, compression.feedback.residuals([f"weights.{number}" for number in range(len(SIZES))])


def test_workers_change_together_when_the_link_does_and_lose_nothing(workers: Any) -> None:
    results = workers.run(on_a_changing_link, [*range(35, 75), *range(115, 150)])
    first = results[0][0]
    changes = [step for step in range(1, 150) if first[step] != first[step - 1]]
    assert len(changes) == (3 if workers.world_size > 1 else 0)
    assert all(36 + 40 * i <= change <= 60 + 40 * i for i, change in enumerate(changes))
    assert all(whole == first for whole, _, _ in results)
    rests, kept = (sum((result[part] for result in results), torch.zeros(sum(SIZES))) for part in (1, 2))
    torch.testing.assert_close(rests, kept, rtol=0, atol=1e-4)


def long_dense(rank: int, world_size: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for how in ({"collective": ALWAYS_DENSE}, {"compressor": "dense"}):
            model = small_buckets()
            gaussiank.compress(model, **how)
            for step in range(410):
                step_of(model, rank, step % 3)
    return [str(one.message) for one in caught if "gaussiank" in str(one.message)]


def test_a_user_for_whom_dense_is_faster_is_told_once(two_workers: Any) -> None:
    told, silent = two_workers.run(long_dense)
    assert len(told) == 1
    assert "has sent whole gradients for 200 steps: dense all-reduce is faster on this link. Leave out" in told[0]
    assert not silent


def with_another_collective(rank: int, world_size: int) -> list[str]:
    """A state goes on under another collective: what one has learnt is no other's."""
    before, after = small_buckets(), small_buckets()
    split = gaussiank.compress(before, 0.05, collective="split")
    for step in range(3):
        step_of(before, rank, step)
    gathered = gaussiank.compress(after, 0.05, collective="allgather")
    gathered.load_state_dict(split.state_dict())
    for step in range(3, 5):
        step_of(after, rank, step)
    return sorted(gathered.state_dict()["routes"])


def test_hints_of_collectives_say_whose_they_are(two_workers: Any) -> None:
    for names in two_workers.run(with_another_collective):
        assert {name.split(" ")[0] for name in names} == {"Split@2", "AllGather@2"}
