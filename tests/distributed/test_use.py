"""Residuals follow what the optimizer used: a mean that it never took is not committed, in loops that people write."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.distributed.test_dense import SIZES, Given, fed, small_buckets
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim import LBFGS, SGD, Optimizer

import gaussiank

NAMES = [f"weights.{number}" for number in range(len(SIZES))]
NUMEL = sum(SIZES)
EXACT: dict[str, Any] = {"wire": "raw+fp32", "density": 0.05}
WAYS: list[dict[str, Any]] = [
    {},
    {"scope": "model"},
    {"scope": "layer", "collective": "split"},
    {"density": 1.0},
    {"density": lambda step: 1.0 if step % 2 else 0.05},
    {"momentum": gaussiank.MomentumCorrection(0.0, masking=False)},
]


class Loop:
    """A training loop on one worker, and the account of what its optimizer used."""

    def __init__(self, rank: int, how: dict[str, Any], *, view: bool = False, to_none: bool = True, **ddp: Any) -> None:
        self.rank, self.to_none = rank, to_none
        self.model = small_buckets(gradient_as_bucket_view=view, **ddp)
        self.compression = gaussiank.compress(self.model, **{**EXACT, **how})
        self.optimizer: Optimizer = SGD(self.model.parameters(), lr=1.0)
        self.given, self.used = torch.zeros(NUMEL), torch.zeros(NUMEL)
        self.turn = 0

    def zero(self) -> None:
        self.optimizer.zero_grad(set_to_none=self.to_none)

    def backward(self, *, counts: bool = True, factor: float = 1.0) -> None:
        """One synchronized backward; ``counts``: its gradient goes into a step of the optimizer."""
        grads = [grad * factor for grad in fed(self.rank, self.turn)]
        self.turn += 1
        self.model(grads).backward()
        if counts:
            self.given += torch.cat(grads)

    def step(self) -> None:
        self.used += self.model.module.grads()
        self.optimizer.step()

    def account(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """What was given, what was used, what is kept, and the steps counted."""
        return self.given, self.used, self.compression.feedback.residuals(NAMES), self.compression.step


def ordinary(loop: Loop) -> int:
    for _ in range(3):
        loop.zero()
        loop.backward()
        loop.step()
    return 3


def skipped(loop: Loop) -> int:
    """A loop that leaves out the steps whose gradient spikes, whenever it zeroes."""
    steps = ordinary(loop)
    for _ in range(3):
        loop.zero()
        loop.backward(counts=False, factor=1e6)
    loop.zero()
    loop.backward()
    loop.step()
    return steps + 1


def skipped_before_no_sync(loop: Loop) -> int:
    steps = ordinary(loop)
    loop.zero()
    loop.backward(counts=False, factor=1e6)
    loop.zero()
    with loop.model.no_sync():
        loop.backward()
    loop.backward()
    loop.step()
    return steps + 1


def accumulated(loop: Loop) -> int:
    """Several synchronized backwards into one step, and one such step left out."""
    steps = ordinary(loop)
    for counts in (True, False, True):
        loop.zero()
        for _ in range(3):
            loop.backward(counts=counts)
        if counts:
            loop.step()
    return steps + 2


def of_a_gan(loop: Loop) -> int:
    """The discriminator's side: the generator's backward runs through it, and is zeroed."""
    steps = ordinary(loop)
    for _ in range(4):
        loop.zero()
        loop.backward()
        loop.backward()
        loop.step()
        loop.backward(counts=False, factor=100.0)
    loop.zero()
    loop.backward()
    loop.step()
    return steps + 5


def sharpness_aware(loop: Loop) -> int:
    """SAM: the first mean only says where to look."""
    steps = ordinary(loop)
    for by_hand in (True, False):
        loop.zero()
        loop.backward(counts=False)
        if by_hand:
            loop.compression.discard()
        loop.zero()
        loop.backward()
        loop.step()
    return steps + 2


def looked_at_in_between(loop: Loop) -> int:
    """Backwards that exchange nothing come before the zeroing, as a generator's through the bare module."""
    steps = ordinary(loop)
    for way in (loop.model.module, loop.model):
        loop.zero()
        loop.backward(counts=False, factor=1e6)
        with loop.model.no_sync():
            way(fed(loop.rank, 0)).backward()
        loop.zero()
        loop.backward()
        loop.step()
    return steps + 2


def stepped_over_nothing(loop: Loop) -> int:
    """The gradient is taken away where it spikes, and the optimizer is called all the same."""
    steps = ordinary(loop)
    loop.zero()
    loop.backward(counts=False, factor=1e6)
    loop.optimizer.zero_grad(set_to_none=True)
    loop.optimizer.step()
    return steps + ordinary(loop)


def saved_after_a_skip(loop: Loop) -> int:
    """``torch.distributed.checkpoint`` steps an optimizer without state over zeros at rate 0, to have one to save."""
    steps = ordinary(loop)
    loop.zero()
    loop.backward(counts=False, factor=1e6)
    loop.optimizer.zero_grad(set_to_none=True)
    get_optimizer_state_dict(loop.model, loop.optimizer)
    assert loop.compression.step == steps + 1  # until it is found that nobody has used it
    return steps + ordinary(loop)


def by_a_new_optimizer(loop: Loop) -> int:
    """Another optimizer takes over, and leaves out its first step."""
    steps = ordinary(loop)
    loop.optimizer = SGD(loop.model.parameters(), lr=1.0)
    gc.collect()
    loop.zero()
    loop.backward(counts=False, factor=1e6)
    return steps + ordinary(loop)


def sharpness_aware_in_a_closure(loop: Loop) -> int:
    """SAM: its step zeroes the first mean, and calls a closure for the one that counts."""
    steps = ordinary(loop)
    loop.zero()
    loop.backward(counts=False)

    def closure() -> float:
        loop.zero()
        loop.backward()
        loop.used += loop.model.module.grads()
        return 0.0

    loop.optimizer.step(closure)
    return steps + 1 + ordinary(loop)


def left_by_an_exception(loop: Loop) -> int:
    """A step that raises has used nothing, and the next one that ends ends it as well."""
    steps = ordinary(loop)

    def closure() -> float:
        raise ZeroDivisionError

    loop.zero()
    loop.backward(counts=False, factor=1e6)
    with pytest.raises(ZeroDivisionError):
        SGD(loop.model.parameters(), lr=1.0).step(closure)
    return steps + ordinary(loop) + skipped(loop)


def before_the_buckets_are_built(loop: Loop) -> int:
    """DDP makes its buckets anew at the second backward: parts of both mean different parameters."""
    loop.optimizer.step()  # over nothing; but torch shows it
    loop.zero()
    loop.backward(counts=False, factor=1e6)
    loop.zero()
    loop.backward()
    loop.backward()
    loop.step()
    return 1


def kept_while_the_buckets_are_built(loop: Loop) -> int:
    loop.optimizer.step()
    loop.backward()
    loop.backward()
    loop.step()
    return 1


def by_two_optimizers(loop: Loop) -> int:
    """A vector that holds parameters of two commits when either has stepped."""
    one, other = SGD([loop.model.module.weights[0]], lr=1.0), SGD(list(loop.model.module.weights)[1:], lr=1.0)
    one.step()
    other.step()
    for optimizer in (one, other, one):
        loop.zero()
        loop.backward()
        loop.used += loop.model.module.grads()
        optimizer.step()
    return 3


LOOPS: list[Callable[[Loop], int]] = [
    ordinary, skipped, skipped_before_no_sync, accumulated, of_a_gan, sharpness_aware, before_the_buckets_are_built,
    kept_while_the_buckets_are_built, looked_at_in_between, stepped_over_nothing, by_a_new_optimizer,
    sharpness_aware_in_a_closure, left_by_an_exception, saved_after_a_skip,
]  # fmt: skip


KINDS = list(itertools.product((False, True), (True, False)))


def kinds_of(number: int) -> list[tuple[dict[str, Any], bool, bool]]:
    """Ways, whether gradients are views, and whether they are zeroed to None, that a loop meets."""
    return [(how, *KINDS[(number + place) % len(KINDS)]) for place, how in enumerate(WAYS)]


def test_any_loop_meets_any_way_and_any_kind_and_any_way_any_kind() -> None:
    chosen = [kinds_of(number) for number in range(len(LOOPS))]
    for rows in chosen:
        assert [how for how, _, _ in rows] == WAYS
        assert {row[1:] for row in rows} == set(KINDS)
    for way in range(len(WAYS)):
        assert {rows[way][1:] for rows in chosen} == set(KINDS)


def of_every_kind(rank: int, world_size: int, number: int) -> list[tuple[Any, ...]]:
    results: list[tuple[Any, ...]] = []
    for how, view, to_none in kinds_of(number):
        loop, body = Loop(rank, how, view=view, to_none=to_none), LOOPS[number]
        steps = body(loop)
        results.append((f"{body.__name__} {how} view={view} to_none={to_none}", steps, *loop.account()))
    return results


def assert_only_what_was_used_is_gone(results: list[list[tuple[Any, ...]]]) -> None:
    """``sum over workers of residual + P used == sum of given``, where only what the optimizer used was given."""
    for rows in zip(*results, strict=True):
        which, steps = rows[0][:2]
        given, kept = (sum((row[part] for row in rows), torch.zeros(NUMEL)) for part in (2, 4))
        assert torch.allclose(kept + len(rows) * rows[0][3], given, rtol=0, atol=1e-3), which
        assert [row[5] for row in rows] == [steps] * len(rows), which


@pytest.mark.parametrize("number", range(len(LOOPS)), ids=lambda number: LOOPS[number].__name__)
def test_what_no_optimizer_used_leaves_no_trace(two_workers: Any, number: int) -> None:
    assert_only_what_was_used_is_gone(two_workers.run(of_every_kind, number))


def with_two_optimizers(rank: int, world_size: int) -> list[tuple[Any, ...]]:
    loop = Loop(rank, {"scope": "model"})
    return [("two optimizers", by_two_optimizers(loop), *loop.account())]


def test_a_vector_of_two_optimizers_commits_with_either(two_workers: Any) -> None:
    assert_only_what_was_used_is_gone(two_workers.run(with_two_optimizers))


def in_a_closure(rank: int, world_size: int) -> list[tuple[Any, ...]]:
    """L-BFGS takes several backwards in a step, and uses each."""
    loop = Loop(rank, {})
    optimizer = LBFGS(loop.model.parameters(), lr=0.1, max_iter=4)
    backwards = 0

    def closure() -> float:
        nonlocal backwards
        backwards += 1
        optimizer.zero_grad()
        loop.backward()
        loop.used += loop.model.module.grads()
        return float(backwards)

    for _ in range(3):
        optimizer.step(closure)
    assert backwards > 6
    return [("closure", backwards, *loop.account())]


def test_every_backward_in_a_closure_counts(two_workers: Any) -> None:
    assert_only_what_was_used_is_gone(two_workers.run(in_a_closure))


def of_a_loop_of_its_own(rank: int, world_size: int) -> list[tuple[Any, ...]]:
    """Torch shows no optimizer: every backward counts, as it always did."""
    loop = Loop(rank, {})
    for _ in range(4):
        loop.zero()
        loop.backward()
        loop.used += loop.model.module.grads()
    return [("own loop", 4, *loop.account())]


def test_without_an_optimizer_every_backward_counts(two_workers: Any) -> None:
    assert_only_what_was_used_is_gone(two_workers.run(of_a_loop_of_its_own))


def between(rank: int, world_size: int) -> dict[str, Any]:
    loop = Loop(rank, {})
    ordinary(loop)
    before, kept = loop.compression.state_dict(), loop.compression.feedback.residuals(NAMES)
    loop.zero()
    loop.backward()
    between = loop.compression.state_dict()
    assert torch.equal(loop.compression.feedback.residuals(NAMES), kept)
    loop.step()
    after = loop.compression.state_dict()
    for name in NAMES:
        assert torch.equal(between["feedback"]["residual"][name], before["feedback"]["residual"][name])
        assert not torch.equal(after["feedback"]["residual"][name], before["feedback"]["residual"][name])
    loop.zero()
    loop.backward()
    loop.step()
    with pytest.raises(RuntimeError, match="discard must come before the optimizer's step, got a backward whose mean"):
        loop.compression.discard()
    return {"steps": [state["step"] for state in (before, between, after)]}


def test_a_state_between_backward_and_step_is_that_before_both(two_workers: Any) -> None:
    assert two_workers.run(between) == [{"steps": [3, 3, 4]}] * 2


def joined_early(rank: int, world_size: int) -> int:
    """Rank 0 has no more inputs, and ends with a backward in ``no_sync``."""
    loop = Loop(rank, {})
    ordinary(loop)
    loop.zero()
    with loop.model.join():
        with loop.model.no_sync():
            loop.backward(counts=False)
        for _ in range(3 * rank):
            loop.backward(counts=False)
            loop.step()
            loop.zero()
    return loop.compression.step


def test_a_worker_that_has_joined_counts_the_steps_of_the_others(two_workers: Any) -> None:
    assert two_workers.run(joined_early) == [6, 6]


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        raise ZeroDivisionError


def interrupted(rank: int, world_size: int) -> list[int]:
    loop = Loop(rank, {})
    ordinary(loop)
    weights = list(loop.model.module.weights)

    def forward(grads: list[Tensor]) -> Tensor:
        # made first, and so the last to go back, when other buckets have left
        first = Failing.apply(weights[0])  # type: ignore[no-untyped-call]
        return sum(
            ((one * grad).sum() for one, grad in zip([first, *weights[1:]], grads, strict=True)), torch.zeros(())
        )

    loop.model.module.forward = forward
    loop.zero()
    with pytest.raises(ZeroDivisionError):
        loop.backward()
    steps = [loop.compression.step, loop.compression.state_dict()["step"]]
    loop.compression.discard()
    return [*steps, loop.compression.step]


def test_a_backward_that_raised_is_no_step(two_workers: Any) -> None:
    assert two_workers.run(interrupted) == [[3, 3, 3]] * 2


def spiking(rank: int, world_size: int) -> int:
    """The loop of the trouble report: steps are left out where the mean's norm spikes."""
    torch.manual_seed(0)
    model = DDP(Given())
    gaussiank.compress(model, density=0.01)
    optimizer = SGD(model.parameters(), lr=0.1)
    skipped = 0
    for step in range(60):
        optimizer.zero_grad()
        model([grad * (1e6 if step == 20 else 1.0) for grad in fed(rank, step)]).backward()
        if model.module.grads().norm() > 1e4:
            skipped += 1
            continue
        optimizer.step()
    return skipped


def test_one_spike_skips_one_step(two_workers: Any) -> None:
    assert two_workers.run(spiking) == [1, 1]


def clipped(rank: int, world_size: int, scope: str) -> list[tuple[Any, ...]]:
    """A clipped exchange is the exchange of clipped gradients."""
    loop = Loop(rank, {"scope": scope, "clip_norm": 3.0})
    total = torch.zeros(NUMEL)
    for _ in range(3):
        grads = fed(rank, loop.turn)
        share = {"model": 3.0 / torch.cat(grads).norm(), "layer": None}[scope]
        total += torch.cat([grad * (3.0 / 3**0.5 / grad.norm() if share is None else share) for grad in grads])
        loop.zero()
        loop.backward(counts=False)
        loop.step()
    with pytest.raises(ValueError, match=r"clip_norm must be given once, got 1\.0 and 2\.0 in momentum"):
        gaussiank.compress(small_buckets(), clip_norm=1.0, momentum=gaussiank.MomentumCorrection(0.9, clip_norm=2.0))
    loop.given = total
    return [(scope, 3, *loop.account())]


def test_each_workers_gradient_is_clipped_before_the_selection(two_workers: Any) -> None:
    for scope in ("model", "layer"):
        assert_only_what_was_used_is_gone(two_workers.run(clipped, scope))


def accumulated_with_momentum(rank: int, world_size: int) -> int:
    """Gradients that hold the first mean must not enter the velocity: that grows without end."""
    loop = Loop(rank, {"momentum": gaussiank.MomentumCorrection(0.9)})
    ordinary(loop)
    for _ in range(2):
        loop.zero()
        with loop.model.no_sync():
            loop.backward()
        loop.backward()
        loop.step()
    step = loop.compression.step
    loop.zero()
    loop.backward()
    with pytest.raises(RuntimeError, match="momentum correction must have one synchronized backward for each step"):
        loop.backward()
    return step


def test_momentum_correction_refuses_a_second_mean_in_a_step(two_workers: Any) -> None:
    assert two_workers.run(accumulated_with_momentum) == [5, 5]
