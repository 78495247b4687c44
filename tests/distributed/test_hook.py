"""The hook in real DDP: nothing is lost, whatever DDP is told to do.

The model's gradients are given: its loss is the sum of parameter x given tensor. So what went in is known exactly, and
for every parameter ``sum over workers of residual + P x sum over steps of mean == sum of all gradients``.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.each import each
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank.compressors import COMPRESSORS

SHAPES = {"first": (40, 5), "second": (64,), "third": (300,), "fourth": (8, 8, 8)}


class Given(nn.Module):
    """A model whose gradients are what it is fed; a name that is not fed is unused."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=dtype)))

    def forward(self, fed: dict[str, Tensor]) -> Tensor:
        return torch.stack([(getattr(self, name) * grad).float().sum() for name, grad in fed.items()]).sum()


def feed(rank: int, step: int, dtype: torch.dtype = torch.float32, only: tuple[str, ...] = ()) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    fed = {}
    for name, shape in SHAPES.items():
        grad = torch.randn(shape, generator=generator).mul(64).round().div(64).to(dtype)
        if not only or name in only:
            fed[name] = grad
    return fed


Totals = dict[str, tuple[Tensor, Tensor, Tensor]]


def totals(compression: gaussiank.Compression, means: dict[str, Tensor], grads: dict[str, Tensor]) -> Totals:
    return {
        name: tuple(held.flatten() for held in (compression.feedback.residual(name), means[name], grads[name].double()))
        for name in SHAPES
    }


def run(rank: int, world_size: int, steps: int, ddp: dict[str, Any], how: dict[str, Any], dtype: torch.dtype) -> Totals:
    return counted(rank, world_size, steps, ddp, how, dtype)[1]


def counted(
    rank: int, world_size: int, steps: int, ddp: dict[str, Any], how: dict[str, Any], dtype: torch.dtype
) -> tuple[list[int], Totals]:
    """Return what was kept in each step, too."""
    kept = []
    model = DDP(Given(dtype), **ddp)
    compression = gaussiank.compress(model, **how)
    means = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    grads = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for step in range(steps):
        model.zero_grad()
        fed = feed(rank, step, dtype)
        model(fed).backward()
        kept.append(compression.metrics.kept)
        for name, parameter in model.module.named_parameters():
            assert parameter.grad is not None
            means[name] += parameter.grad
            grads[name] += fed[name]
    assert compression.step == steps
    return kept, totals(compression, means, grads)


def assert_nothing_lost(results: list[Totals], rtol: float = 0.0, atol: float = 2e-5) -> None:
    world_size = len(results)
    for name in SHAPES:
        mean = results[0][name][1]
        for result in results:
            assert torch.equal(result[name][1], mean), f"{name}: workers hold different means"
        kept = torch.stack([result[name][0].double() for result in results]).sum(0)
        given = torch.stack([result[name][2] for result in results]).sum(0)
        torch.testing.assert_close(
            kept + world_size * mean, given, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


SMALL_BUCKETS = {"bucket_cap_mb": 0.0005}


@each("ddp", [{}, SMALL_BUCKETS, {"gradient_as_bucket_view": True}, {"static_graph": True}],
                         ids=["one bucket", "small buckets", "views", "static graph"])  # fmt: skip
@each("scope", ["bucket", "layer", "model"])
def test_nothing_is_lost_in_any_scope(workers: Any, ddp: dict[str, Any], scope: str) -> None:
    results = workers.run(run, 6, ddp, {"density": 0.02, "scope": scope}, torch.float32)
    assert_nothing_lost(results)
    assert any(result[name][0].any() for result in results for name in SHAPES)


@each("compressor", [*COMPRESSORS, "gaussiank:mode=published", "randomk:shared=true"])
def test_nothing_is_lost_by_any_compressor(workers: Any, compressor: str) -> None:
    assert_nothing_lost(workers.run(run, 5, SMALL_BUCKETS, {"density": 0.05, "compressor": compressor}, torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scope", ["bucket", "model"])
def test_nothing_is_lost_in_other_dtypes(two_workers: Any, dtype: torch.dtype, scope: str) -> None:
    results = two_workers.run(run, 6, SMALL_BUCKETS, {"density": 0.1, "scope": scope}, dtype)
    assert_nothing_lost(results)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(result[name][0].dtype == expected for result in results for name in SHAPES)


def test_dense_steps_of_a_schedule_flush_the_residual(workers: Any) -> None:
    schedule = gaussiank.Warmup((0.05, 1.0), stage_steps=3)
    results = workers.run(run, 4, SMALL_BUCKETS, {"density": schedule}, torch.float32)
    assert_nothing_lost(results)
    assert not any(result[name][0].any() for result in results for name in SHAPES)


def test_dense_start_in_half_precision_keeps_its_rounding(two_workers: Any) -> None:
    schedule = gaussiank.Warmup((0.05, 1.0), stage_steps=3)
    results = two_workers.run(run, 4, SMALL_BUCKETS, {"density": schedule}, torch.bfloat16)
    # the all-reduce itself sums in bfloat16, as DDP's does; only what was rounded before it can be kept
    assert_nothing_lost(results, rtol=2e-2, atol=8e-2)


def test_byte_budget_cuts_into_the_residual(workers: Any) -> None:
    results = workers.run(run, 5, {}, {"density": 0.5, "max_bytes": 16 + 8 * 10}, torch.float32)
    assert_nothing_lost(results)


def same_grads(ours: DDP, theirs: DDP, rank: int) -> bool:
    """Train both on the same for some steps, and tell whether all means were the same bits."""
    same = True
    for step in range(3):
        for model in (ours, theirs):
            model.zero_grad()
            model(feed(rank, step)).backward()
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        same = same and all(torch.equal(a.grad, b.grad) for a, b in pairs)  # type: ignore[arg-type]
    return same


def density_one(rank: int, world_size: int) -> bool:
    ours, theirs = DDP(Given(), **SMALL_BUCKETS), DDP(Given(), **SMALL_BUCKETS)
    gaussiank.compress(ours, density=1.0)
    theirs.register_comm_hook(None, default_hooks.allreduce_hook)
    return same_grads(ours, theirs, rank)


def test_density_one_equals_ddps_all_reduce_to_the_bit(workers: Any) -> None:
    assert workers.run(density_one) == [True] * workers.world_size


def narrow_dense(rank: int, world_size: int, values: str) -> tuple[bool, int]:
    """Beside a hook of DDP's own interface; torch's own for bfloat16 wants CUDA."""

    def rounded_all_reduce(dtype: torch.dtype, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        grad = bucket.buffer()
        work = dist.all_reduce(grad.div(world_size).to(dtype), async_op=True)
        assert work is not None
        return work.get_future().then(lambda done: grad.copy_(done.value()[0]))  # type: ignore[no-any-return]

    rounded_all_reduce.__annotations__ |= {"bucket": dist.GradBucket, "return": torch.futures.Future[Tensor]}
    ours, theirs = DDP(Given(), **SMALL_BUCKETS), DDP(Given(), **SMALL_BUCKETS)
    compression = gaussiank.compress(ours, compressor=f"dense:values={values}")
    theirs.register_comm_hook({"bf16": torch.bfloat16, "fp16": torch.float16}[values], rounded_all_reduce)
    return same_grads(ours, theirs, rank), compression.metrics.dense_bytes - 2 * compression.metrics.sent_bytes


@pytest.mark.parametrize("values", ["bf16", "fp16"])
def test_narrow_dense_sends_half_the_bytes(workers: Any, values: str) -> None:
    assert workers.run(narrow_dense, values) == [(True, 0)] * workers.world_size


def topk_by_hand(rank: int, world_size: int) -> tuple[Any, Any]:
    """The algorithm of the paper, step by step on gathered dense vectors, beside the hook."""
    model = DDP(Given())
    gaussiank.compress(model, density=0.01, scope="layer", wire="raw+fp32")
    residual = {name: torch.zeros(shape).flatten() for name, shape in SHAPES.items()}
    ours, theirs = [], []
    for step in range(5):
        model.zero_grad()
        fed = feed(rank, step)
        model(fed).backward()
        for name, parameter in model.module.named_parameters():
            accumulated = residual[name] + fed[name].flatten()
            k = max(1, round(0.01 * accumulated.numel()))
            order = sorted(range(accumulated.numel()), key=lambda i: (-abs(float(accumulated[i])), i))[:k]
            sent = torch.zeros_like(accumulated)
            sent[order] = accumulated[order]
            residual[name] = accumulated - sent
            parts = [torch.empty_like(sent) for _ in range(world_size)]
            dist.all_gather(parts, sent)
            theirs.append(torch.stack(parts).sum(0) / world_size)
            assert parameter.grad is not None
            ours.append(parameter.grad.flatten().clone())
    return ours, theirs


def test_topk_is_the_algorithm_of_the_paper(workers: Any) -> None:
    for ours, theirs in workers.run(topk_by_hand):
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-7)


def with_unused(rank: int, world_size: int) -> tuple[Totals, bool]:
    model = DDP(Given(), find_unused_parameters=True, **SMALL_BUCKETS)
    compression = gaussiank.compress(model, density=0.02)
    means = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    grads = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    left_alone = True
    for step in range(6):
        # "third" is used by nobody in odd steps, "second" by the even ranks only
        only = tuple(
            name for name in SHAPES if (name != "third" or step % 2 == 0) and (name != "second" or rank % 2 == 0)
        )
        fed = feed(rank, step, only=only)
        model.zero_grad(set_to_none=True)
        before = compression.feedback.residual("third")
        model(fed).backward()
        for name, parameter in model.module.named_parameters():
            means[name] += 0 if parameter.grad is None else parameter.grad
            grads[name] += fed.get(name, torch.zeros(()))
        if step % 2:
            left_alone = left_alone and torch.equal(before, compression.feedback.residual("third"))
    return totals(compression, means, grads), left_alone


def test_unused_parameters_keep_their_residual(workers: Any) -> None:
    results = workers.run(with_unused)
    assert_nothing_lost([result for result, _ in results])
    assert all(alone for _, alone in results)


def accumulating(rank: int, world_size: int) -> Totals:
    model = DDP(Given())
    compression = gaussiank.compress(model, density=0.02)
    means = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    grads = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for step in range(0, 6, 2):
        model.zero_grad()
        for micro in (step, step + 1):
            fed = feed(rank, micro)
            with model.no_sync() if micro == step else contextlib.nullcontext():
                model(fed).backward()
            for name in SHAPES:
                grads[name] += fed[name]
        for name, parameter in model.module.named_parameters():
            assert parameter.grad is not None
            means[name] += parameter.grad
    assert compression.step == 3
    return totals(compression, means, grads)


def test_gradient_accumulation_with_no_sync(workers: Any) -> None:
    assert_nothing_lost(workers.run(accumulating))


def joined(rank: int, world_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Workers with unequal numbers of inputs; returns residual, applied sum and own gradients of "third"."""
    model = DDP(Given())
    compression = gaussiank.compress(model, density=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    own = torch.zeros(300)
    with model.join():
        for step in range(2 + rank):
            optimizer.zero_grad()
            fed = feed(rank, step)
            own += fed["third"]
            model(fed).backward()
            optimizer.step()
    return compression.feedback.residual("third"), -model.module.third.detach(), own


def test_join_with_uneven_inputs(workers: Any) -> None:
    results = workers.run(joined)
    applied = results[-1][1]  # the last rank to finish has taken every step; join copies its parameters to all
    assert all(torch.equal(result[1], applied) for result in results)
    kept = torch.stack([result[0] for result in results]).sum(0)
    given = torch.stack([result[2] for result in results]).sum(0)
    torch.testing.assert_close(kept + workers.world_size * applied, given, rtol=0, atol=2e-5)


def rebuilding(rank: int, world_size: int) -> list[tuple[str, ...]]:
    model = DDP(Given())
    compression = gaussiank.compress(model, density=0.02)
    orders: list[tuple[str, ...]] = []
    find = compression._layout
    compression._layout = lambda buckets: orders.append(find(buckets).names) or find(buckets)
    for step in range(3):
        model.zero_grad()
        model(feed(rank, step)).backward()
    return list(dict.fromkeys(orders))


def test_ddp_does_reverse_a_bucket_of_the_same_size(two_workers: Any) -> None:
    """What ``test_nothing_is_lost_in_any_scope`` relies on to prove that residuals move by name."""
    before, after = two_workers.run(rebuilding)[0]
    assert after == before[::-1] != before


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 4, sparse=True)
        self.out = nn.Linear(4, 30)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.table(tokens))


def sparse_embedding(rank: int, world_size: int, scope: str) -> tuple[bool, int]:
    ours, theirs = DDP(Embedded()), DDP(Embedded())
    compression = gaussiank.compress(ours, density=0.1, scope=scope)  # type: ignore[arg-type]
    tokens = torch.tensor([rank, rank + 1, 7])
    for model in (ours, theirs):
        model(tokens).square().sum().backward()
    mine, reference = ours.module.table.weight.grad, theirs.module.table.weight.grad
    assert mine is not None
    assert reference is not None
    return mine.is_sparse and torch.allclose(mine.to_dense(), reference.to_dense()), compression.metrics.numel


@pytest.mark.parametrize("scope", ["bucket", "model"])
def test_sparse_embeddings_pass_through(workers: Any, scope: str) -> None:
    assert workers.run(sparse_embedding, scope) == [(True, 150)] * workers.world_size


def several(rank: int, world_size: int) -> tuple[Totals, int, int]:
    first, second = DDP(Given()), DDP(Given())
    one = gaussiank.compress(first, density=0.02)
    two = gaussiank.compress(second, density=0.5, compressor="randomk")
    means = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    grads = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for step in range(4):
        for model in (first, second):
            model.zero_grad()
        fed = feed(rank, step)
        (first(fed) + second(feed(rank, step + 50))).backward()
        for name, parameter in first.module.named_parameters():
            assert parameter.grad is not None
            means[name] += parameter.grad
            grads[name] += fed[name]
    return totals(one, means, grads), one.metrics.kept, two.metrics.kept


def test_several_models_in_one_backward(workers: Any) -> None:
    results = workers.run(several)
    assert_nothing_lost([result for result, _, _ in results])
    numel = sum(torch.Size(shape).numel() for shape in SHAPES.values())
    assert {(one, two) for _, one, two in results} == {(round(0.02 * numel), round(0.5 * numel))}


def resumed(rank: int, world_size: int, how: dict[str, Any]) -> bool:
    straight = DDP(Given())
    one = gaussiank.compress(straight, **how)
    for step in range(3):
        straight.zero_grad()
        straight(feed(rank, step)).backward()
    saved = io.BytesIO()
    torch.save(one.state_dict(), saved)
    saved.seek(0)
    resumed = DDP(Given())
    two = gaussiank.compress(resumed, **how)
    resumed(feed(rank, 99)).backward()  # so that both have rebuilt buckets, and there is something to replace
    two.load_state_dict(torch.load(saved, weights_only=True))
    same = True
    for step in range(3, 6):
        for model in (straight, resumed):
            model.zero_grad()
            model(feed(rank, step)).backward()
        pairs = zip(straight.parameters(), resumed.parameters(), strict=True)
        same = same and all(torch.equal(a.grad, b.grad) for a, b in pairs)  # type: ignore[arg-type]
    return same and one.step == two.step == 6


@each(
    "how",
    [{"density": 0.02}, {"density": 0.1, "compressor": "gaussiank"}, {"density": 0.02, "compressor": "randomk"},
     {"density": 0.02, "momentum": gaussiank.MomentumCorrection(nesterov=True)}],
    ids=["topk", "gaussiank", "randomk", "momentum"],
)  # fmt: skip
def test_resume_goes_on_to_the_bit(workers: Any, how: dict[str, Any]) -> None:
    assert workers.run(resumed, how) == [True] * workers.world_size


def foreign_state(rank: int, world_size: int) -> list[str]:
    model = DDP(Given())
    compression = gaussiank.compress(model, density=0.02)
    model(feed(rank, 0)).backward()
    good = compression.state_dict()
    smaller = {**good["feedback"], "parameters": {"first": 200}}
    messages = []
    for bad in (
        {**good, "format": 99},
        {**good, "world_size": world_size + 1},
        {**good, "rank": rank + 1},
        {**good, "feedback": smaller},
    ):
        try:
            compression.load_state_dict(bad)
        except ValueError as error:
            messages.append(str(error))
    after = compression.state_dict()["feedback"]["residual"]
    assert all(torch.equal(after[name], good["feedback"]["residual"][name]) for name in SHAPES)
    return messages


ADVICE = (
    "Load on each worker what that worker saved: compression.save(folder) and load(folder) do, for another number of "
    "workers too. A framework's checkpoint keeps rank 0's state alone. (rank 0)"
)


def test_foreign_states_are_refused_and_change_nothing(two_workers: Any) -> None:
    messages = two_workers.run(foreign_state)[1]
    assert messages == [
        "state must have format 1, got 99. Load it with the gaussiank that saved it. (rank 0)",
        f"world_size of the state must be 2, got 3. {ADVICE}",
        f"rank of the state must be 0, got 1. {ADVICE}",
        "state must be of this model, got no entries for parameter 'fourth' where the model has 512. "
        "Load the state of this model. (rank 0)",
    ]


def misused(rank: int, world_size: int) -> list[str]:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wave = nn.Parameter(torch.zeros(3, dtype=torch.complex64))

    twice = DDP(Given())
    gaussiank.compress(twice)
    attempts: list[Any] = [
        lambda: gaussiank.compress(Given()),  # type: ignore[arg-type]
        lambda: gaussiank.compress(DDP(Given()), density=0),
        lambda: gaussiank.compress(DDP(Given()), density=1.5),
        lambda: gaussiank.compress(DDP(Given()), compressor="topkk"),
        lambda: gaussiank.compress(DDP(Given()), scope="world"),  # type: ignore[arg-type]
        lambda: gaussiank.compress(DDP(Given()), on_nonfinite="ignore"),  # type: ignore[arg-type]
        lambda: gaussiank.compress(DDP(Given()), max_bytes=20),
        lambda: gaussiank.compress(DDP(Complex())),
        lambda: gaussiank.compress(
            DDP(Given()), compressor="randomk:feedback=false", momentum=gaussiank.MomentumCorrection()
        ),
        lambda: gaussiank.compress(DDP(Given()), density=0.001 * (1 + rank)),
        lambda: gaussiank.compress(twice),
    ]
    messages = []
    for attempt in attempts:
        try:
            attempt()
        except (ValueError, RuntimeError) as error:
            messages.append(str(error).split("\n")[0])
    return messages


def test_misuse_gets_one_sentence(two_workers: Any) -> None:
    messages = two_workers.run(misused)[1]
    beginnings = [
        "model must be wrapped in DistributedDataParallel, got Given. Wrap it first",
        "density must be in (0, 1], got 0.",
        "density must be in (0, 1], got 1.5.",
        "compressor must be one of dense, topk, gaussiank, dgc, trimmedtopk, mstopk, sidco, chunktopk, randomk, got ",
        "scope must be one of bucket, layer, model, got 'world'.",
        "on_nonfinite must be propagate or raise, got 'ignore'.",
        "max_bytes must be at least 42, the longest message of AllGather with one entry, got 20.",
        "dtype of parameter wave must be one of float32, bfloat16, float16, float64, got torch.complex64.",
        "momentum must be None for a compressor without feedback",
        "density must be the same on every worker, got 'Constant(density=0.001)' on rank 0 and "
        "'Constant(density=0.002)' on rank 1. Start all workers with the same settings.",
        "model must have no communication hook yet, got one that has a hook. Call compress once for each",
    ]
    for message, beginning in zip(messages, beginnings, strict=True):
        assert message.startswith(beginning)


def halving(rank: int, world_size: int) -> list[float]:
    model = DDP(Given())
    compression = gaussiank.compress(model, lambda step: 0.5 ** (step + 1))  # another object on every worker
    densities = []
    for step in range(3):
        densities.append(compression.density)
        model(feed(rank, step)).backward()
    return densities


def test_any_function_of_the_step_is_a_schedule(two_workers: Any) -> None:
    assert two_workers.run(halving) == [[0.5, 0.25, 0.125]] * 2
