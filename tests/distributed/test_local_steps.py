"""``LocalSteps`` among real workers: what it equals, what it loses, and the same bits everywhere."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gaussiank import LocalSteps

EXACT = {"density": 1.0, "decay": 1.0, "wire": "raw+fp32"}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"fragments": 3, "collective": "split", "compressor": "topk"},
    {"fragments": 2, "sync_delay": 2, "wire": "rice+8bit"},
    {"fragments": 4, "sync_delay": 3, "mixing": 0.5, "collective": "leader"},  # several in flight at a time
    {"sync_delay": 3, "collective": "tree"},
    {"density": 1.0, "wire": "rice+8bit", "outer_optimizer": "nesterov"},
    {"density": 1.0, "fragments": 2, "outer_optimizer": "adam"},
    {"compressor": "sidco", "collective": "auto"},
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 10), nn.Linear(10, 1))


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    inputs = torch.randn(8, 20, generator=generator)
    return inputs, inputs[:, :1].sin()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    inputs, targets = batch(rank, step)
    optimizer.zero_grad()
    (model(inputs) - targets).square().mean().backward()
    optimizer.step()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([one.detach().flatten() for one in model.parameters()])


def gathered(vector: Tensor) -> Tensor:
    rows = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, vector)
    return torch.stack(rows)


def agreed_of(local: LocalSteps) -> Tensor:
    return torch.cat([one.flatten() for one in local.agreed().values()])


def residual_of(local: LocalSteps) -> Tensor:
    return torch.cat([local.residual(name).flatten() for name in local.agreed()])


def outer(name: str | None) -> Any:
    made = {
        "nesterov": lambda agreed: torch.optim.SGD(agreed, lr=0.7, momentum=0.9, nesterov=True),
        "adam": lambda agreed: torch.optim.AdamW(agreed, lr=1e-2),
    }
    return None if name is None else made[name]


def made(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> LocalSteps:
    return LocalSteps(model, optimizer, **{**settings, "outer_optimizer": outer(settings.get("outer_optimizer"))})


def beside_ddp(rank: int, world_size: int) -> float:
    one, other = net(), DistributedDataParallel(net())
    inner, plain = (torch.optim.SGD(model.parameters(), lr=0.05) for model in (one, other))
    local = LocalSteps(one, inner, sync_every=1, **EXACT)
    for step in range(50):
        train(one, inner, rank, step)
        assert local.step()
        train(other, plain, rank, step)
    return float((weights(one) - weights(other)).abs().max())


def beside_plain(rank: int, world_size: int) -> float:
    one, other = net(), net()
    inner, plain = (torch.optim.AdamW(model.parameters(), lr=0.01) for model in (one, other))
    groups = [dist.new_group([member]) for member in range(world_size)]
    local = LocalSteps(one, inner, sync_every=5, group=groups[rank], **EXACT)
    for step in range(50):
        train(one, inner, rank, step)
        local.step()
        train(other, plain, rank, step)
    return float((weights(one) - weights(other)).abs().max())


def the_law(rank: int, world_size: int) -> None:
    """Nothing else gives or takes: what left the residuals is what moved the agreed weights, bit for bit."""
    model = net()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    local = LocalSteps(model, inner, sync_every=4, density=0.05, decay=0.75, wire="raw+fp32", compressor="topk")
    for step in range(1, 17):
        train(model, inner, rank, step)
        agreed, residual = agreed_of(local), residual_of(local)
        difference = agreed - weights(model)
        if local.step():
            sent = 0.75 * residual + difference - residual_of(local)
            own = sent != 0
            assert 1 <= int(own.sum()) <= local.metrics.kept
            assert torch.equal(residual_of(local)[own], torch.zeros(int(own.sum())))
            both = gathered(sent)
            assert torch.equal(weights(model), agreed - (both[0] + both[1]) / 2)
            assert torch.equal(agreed_of(local), weights(model))


def the_same_bits(rank: int, world_size: int, settings: dict[str, Any]) -> list[float]:
    model = net()
    if rank:
        for parameter in model.parameters():  # rank 0's go to all
            parameter.data.add_(1.0)
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    local = made(model, inner, sync_every=6, **settings)
    losses = []
    for step in range(48):
        train(model, inner, rank, step)
        if local.step():
            agreed = gathered(agreed_of(local))
            assert all(torch.equal(row, agreed[0]) for row in agreed)
            inputs, targets = batch(99, 0)
            losses.append(float((model(inputs) - targets).square().mean().detach()))
    local.finish()
    final = gathered(weights(model))
    assert all(torch.equal(row, final[0]) for row in final)
    return losses


def test_it_equals_ddp_where_it_exchanges_every_step(two_workers: Any) -> None:
    assert max(two_workers.run(beside_ddp)) < 1e-6


def test_a_worker_alone_trains_as_without_it(two_workers: Any) -> None:
    assert max(two_workers.run(beside_plain)) < 1e-6


def test_nothing_is_lost(two_workers: Any) -> None:
    two_workers.run(the_law)


def test_every_worker_ends_a_round_with_the_same_bits(workers: Any) -> None:
    for settings in SETTINGS:
        losses = workers.run(the_same_bits, settings)[0]
        assert losses[-1] < losses[0], settings
        assert len(losses) >= 7 * settings.get("fragments", 1), settings
