"""``LocalSteps`` among real workers: what it equals, what it loses, and the same bits everywhere."""

from __future__ import annotations

import math
import warnings
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


def spoilt(rank: int, world_size: int, settings: dict[str, Any], factor: float) -> tuple[str, list[str], bool]:
    """Return the error, the warnings, and whether training went on well, where rank 1's weights are spoilt once."""
    model = net()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    local = LocalSteps(model, inner, sync_every=6, density=0.2, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for step in range(36):
                train(model, inner, rank, step)
                if rank == 1 and step == 10:
                    next(model.parameters()).data.mul_(factor)
                local.step()
        except RuntimeError as error:
            return str(error), [], bool(torch.isfinite(agreed_of(local)).all())
    local.finish()
    final = gathered(weights(model))
    good = torch.equal(final[0], final[1]) and bool(torch.isfinite(final).all())
    return "", [str(one.message) for one in caught], good and float(final.abs().max()) < 10


def test_a_spoilt_worker_does_not_poison_the_others(two_workers: Any) -> None:
    for settings in ({}, {"fragments": 2, "sync_delay": 2}):
        for rank, (error, _, good) in enumerate(two_workers.run(spoilt, settings, math.nan)):
            assert good, rank
            assert "the difference of rank 1 is not finite in the round of step" in error
        for rank, (_, said, good) in enumerate(
            two_workers.run(spoilt, {**settings, "on_outlier": "leave_out"}, math.inf)
        ):
            assert good, rank
            assert [text.split(" in the round")[0] for text in said] == ["the difference of rank 1 is not finite"]
        for rule in ("leave_out", "clip", "raise"):
            answers = two_workers.run(spoilt, {**settings, "on_outlier": rule, "norm_limit": 5.0}, 1e6)
            for error, said, good in answers:
                assert good
                assert "rank 1 has norm" in (error if rule == "raise" else said[0])


def apart(rank: int, world_size: int, fault: str) -> str:
    model = net()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    local = LocalSteps(model, inner, sync_every=4, check_every=2)
    try:
        for step in range(16):
            train(model, inner, rank, step)
            if fault == "steps" and rank == 1 and step == 5:
                local.steps += 4
            if fault == "bits" and rank == 1 and step == 5:
                local._weights["0.bias"].data[3] += 1e-6
            local.step()
    except RuntimeError as error:
        return str(error)
    return ""


def test_workers_that_are_apart_are_named(two_workers: Any) -> None:
    for said in two_workers.run(apart, "steps"):
        assert said.startswith(
            "local.step() must be called as often on every worker, got inner step 12 on rank 1 and 8"
        )
    for said in two_workers.run(apart, "bits"):
        assert "must have the same bits on every worker, got others on rank 1 before step 12" in said


def normed(rank: int, world_size: int, buffers: str) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 1))
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    local = LocalSteps(model, inner, sync_every=3, fragments=2, sync_delay=1, buffers=buffers)
    before = torch.empty(0)
    for step in range(4):
        train(model, inner, rank, step)
        if step == 2:
            before = model[1].running_mean.clone()
        local.step()
    return [before, model[1].running_mean, model[1].running_var]


def test_running_statistics_are_averaged_or_kept(two_workers: Any) -> None:
    first, second = two_workers.run(normed, "average")
    assert torch.equal(first[1], (first[0] + second[0]) / 2)
    assert torch.equal(first[2], second[2])
    first, second = two_workers.run(normed, "keep")
    assert not torch.equal(first[1], second[1])


RESUMED: list[dict[str, Any]] = [
    {},
    {"fragments": 3, "sync_delay": 3, "collective": "split", "outer_optimizer": "nesterov"},
    {"fragments": 2, "sync_delay": 2, "mixing": 0.5, "residual_dtype": torch.bfloat16, "compressor": "gaussiank"},
    {"density": 1.0, "sync_delay": 1, "offload": "cpu"},
]


def setting(**settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, LocalSteps]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 10), nn.Linear(10, 1))
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, inner, made(model, inner, sync_every=6, **settings)


def everything(model: nn.Module, local: LocalSteps) -> Tensor:
    local.state_dict()  # waits for what is under way
    return torch.cat([weights(model), model[1].running_var, agreed_of(local), residual_of(local).float()])


def resumed(rank: int, world_size: int, folder: str, settings: dict[str, Any]) -> None:
    """Save at every step of a run; from each save, another run ends with the same bits."""
    model, inner, local = setting(**settings)
    for step in range(14):
        train(model, inner, rank, step)
        local.step()
        local.save(f"{folder}/{step}")
    final = everything(model, local)
    for begin in range(14):
        model, inner, local = setting(**settings)
        if begin % 5 == 0:
            train(model, inner, rank, 77)
            local.step()
        local.load(f"{folder}/{begin}")
        for step in range(begin + 1, 14):
            train(model, inner, rank, step)
            local.step()
        assert torch.equal(everything(model, local), final), begin


def test_it_resumes_at_any_inner_step_to_the_bit(two_workers: Any, tmp_path: Any) -> None:
    for number, settings in enumerate(RESUMED):
        two_workers.run(resumed, str(tmp_path / str(number)), settings)


def mass(model: nn.Module, local: LocalSteps) -> Tensor:
    """Return what this worker has yet to give: its residual, and what it learnt that is not in it and was not sent."""
    learnt = agreed_of(local) - weights(model)
    for fragment in local._fragments:
        if fragment.flight is not None:
            places = dict(zip(local.agreed(), range(99), strict=False))
            names = list(local.agreed())
            numels = [one.numel() for one in local.agreed().values()]
            start = sum(numels[: places[fragment.names[0]]])
            end = start + sum(numels[names.index(name)] for name in fragment.names)
            learnt[start:end] = torch.cat(fragment.flight.before) - weights(model)[start:end]
    return residual_of(local) + learnt


def saved_in_flight(rank: int, world_size: int, folder: str, settings: dict[str, Any], steps: int) -> Tensor:
    model, inner, local = setting(**settings)
    for step in range(steps):
        train(model, inner, rank, step)
        local.step()
    local.save(folder)
    return torch.stack([mass(model, local), agreed_of(local)])


def loaded_by_others(rank: int, world_size: int, folder: str, settings: dict[str, Any]) -> Tensor:
    model, inner, local = setting(**settings)
    local.load(folder)
    assert torch.equal(agreed_of(local), weights(model))
    found = torch.stack([mass(model, local), agreed_of(local)])
    for step in range(local.steps, local.steps + 12):
        train(model, inner, rank, step)
        local.step()
    agreed = gathered(agreed_of(local))
    assert all(torch.equal(row, agreed[0]) for row in agreed)
    return found


def test_other_workers_take_over_without_losing_mass(two_workers: Any, four_workers: Any, tmp_path: Any) -> None:
    for number, settings in enumerate(({"density": 0.1}, {"density": 0.1, "fragments": 2, "sync_delay": 2})):
        for before, after in ((four_workers, two_workers), (two_workers, four_workers)):
            folder = str(tmp_path / f"{number}-{before.world_size}")
            saved = torch.stack(before.run(saved_in_flight, folder, settings, 10))  # 10: in flight with the delay
            loaded = torch.stack(after.run(loaded_by_others, folder, settings))
            torch.testing.assert_close(loaded[:, 0].mean(0), saved[:, 0].mean(0), rtol=1e-6, atol=1e-8)
            assert torch.equal(loaded[0, 1], saved[0, 1])


def other_fragments(rank: int, world_size: int, folder: str) -> list[str]:
    model, inner, local = setting(fragments=3, sync_delay=2)
    for step in range(5):
        train(model, inner, rank, step)
        local.step()
    local.save(f"{folder}/flying")
    train(model, inner, rank, 5)
    local.step()
    local.finish()
    local.save(f"{folder}/landed")
    final = everything(model, local)
    model, inner, local = setting(fragments=2, sync_delay=1)
    said = []
    for place in ("flying", "none"):
        try:
            local.load(f"{folder}/{place}")
        except (ValueError, OSError) as error:
            said.append(str(error))
    local.load(f"{folder}/landed")
    assert torch.equal(everything(model, local), final)
    return said


def test_other_fragments_take_over_unless_some_are_in_flight(two_workers: Any, tmp_path: Any) -> None:
    for said in two_workers.run(other_fragments, str(tmp_path)):
        assert said[0].startswith(
            "fragments must be those of the state while rounds are under way, got 2 for one with 3"
        )
        assert "must be one that local.save wrote" in said[1]
