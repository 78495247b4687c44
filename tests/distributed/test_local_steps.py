"""``LocalSteps`` among real workers: what it equals, what it loses, and the same bits everywhere."""

from __future__ import annotations

import gc
import math
import os
import time
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gaussiank import LocalSteps
from gaussiank.comm import Communicator, Executor

EXACT = {"density": 1.0, "decay": 1.0, "wire": "raw+fp32"}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"fragments": 3, "collective": "split", "compressor": "topk"},
    {"fragments": 2, "sync_delay": 2, "wire": "rice+8bit"},
    {"fragments": 4, "sync_delay": 3, "mixing": 0.5, "collective": "leader"},  # several in flight at a time
    {"sync_delay": 3, "collective": "tree", "compressor": "topk", "scope": "layer"},
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


def finished(rank: int, world_size: int, settings: dict[str, Any]) -> None:
    """A dense last round leaves nothing anywhere: the weights are the mean of all that was learnt."""
    model = net()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    local = LocalSteps(model, inner, sync_every=4, density=0.05, **settings)
    for step in range(10):
        train(model, inner, rank, step)
        local.step()
    if not settings.get("sync_delay"):
        left = [residual_of(local) + agreed_of(local) - weights(model)]
        expected = agreed_of(local) - gathered(left[0]).mean(0)
    with pytest.raises(ValueError, match=r"density must be 1 or None in finish, got 0\.5"):
        local.finish(density=0.5)
    local.finish(density=1)
    assert not residual_of(local).any()
    assert local.residual_norm() == 0
    if not settings.get("sync_delay"):
        torch.testing.assert_close(weights(model), expected, rtol=0, atol=1e-6)
    assert sum(one.kept for one in local.ended[-settings.get("fragments", 1) :]) == weights(model).numel()
    train(model, inner, rank, 10)
    local.step()
    local.finish()
    assert sum(one.kept for one in local.ended) < weights(model).numel() / 2  # the density is as it was


def test_a_dense_last_round_leaves_nothing(two_workers: Any) -> None:
    for settings in ({}, {"fragments": 2, "sync_delay": 2}, {"wire": "rice+8bit", "compressor": "topk"}):
        two_workers.run(finished, settings)


def told(rank: int, world_size: int) -> None:
    """What rounds say of themselves, and when nothing ended."""
    model = net()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    local = LocalSteps(model, inner, sync_every=4, fragments=2, sync_delay=1, density=0.2)
    seen = []
    for step in range(1, 13):
        train(model, inner, rank, step)
        norm = [float(torch.cat([one.flatten() for one in each.differences()]).norm()) for each in local._fragments]
        changed = local.step()
        assert changed == bool(local.ended)
        seen += [(step, one) for one in local.ended]
        if step in (2, 4):
            begun = norm[step // 2 - 1]
        elif step in (3, 5):
            assert local.ended[0].difference_norm == pytest.approx(begun)
    assert [(step, one.began, one.fragment) for step, one in seen] == [
        (began + 1, began, began // 2 % 2 ^ 1) for began in (2, 4, 6, 8, 10)
    ]
    assert sum(one.sent_bytes for _, one in seen) == local.sent_bytes
    assert all(0 < one.waited_s < one.round_s for _, one in seen)
    assert local.residual_norm() == pytest.approx(float(residual_of(local).norm()))


def test_rounds_tell_of_themselves(two_workers: Any) -> None:
    two_workers.run(told)


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
    train(model, inner, rank, 36)
    recovered = bool(torch.isfinite(weights(model)).all())
    local.finish()
    final = gathered(weights(model))
    good = recovered and torch.equal(final[0], final[1]) and bool(torch.isfinite(final).all())
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


def messages(rank: int, world_size: int) -> list[list[int]]:
    """Bytes of each message of three rounds, as ``Communicator`` sends them; no mean goes by an all-reduce."""
    sent: list[list[int]] = []
    starts = {name: getattr(Communicator, name) for name in ("all_gather", "all_reduce")}

    def noting(name: str) -> Any:
        def start(comm: Communicator, vector: Tensor, *arguments: Any, **more: Any) -> Any:
            sent[-1].append(vector.numel() if name == "all_gather" else -1)
            return starts[name](comm, vector, *arguments, **more)

        return start

    with pytest.MonkeyPatch.context() as patch:
        for name in starts:
            patch.setattr(Communicator, name, noting(name))
        patch.setattr(Executor, "average", lambda *_: pytest.fail("a message of its own"))
        model = net()
        inner = torch.optim.SGD(model.parameters(), lr=0.05)
        local = LocalSteps(model, inner, sync_every=1, check_every=1)
        for step in range(3):
            sent.append([])
            train(model, inner, rank, step)
            local.step()
            assert local.metrics.sent_bytes == sent[-1][1] * (world_size - 1)
    return sent


def test_a_round_is_a_note_of_32_bytes_and_the_payload(two_workers: Any) -> None:
    for sent in two_workers.run(messages):
        assert [len(one) for one in sent] == [2, 2, 2]
        assert [one[0] for one in sent] == [32, 32, 32]


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


def held_bytes() -> int:
    """Count the bytes of all tensors in this process, each storage once."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if type(one) in (Tensor, nn.Parameter):
            storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(storages.values())


HELD: list[tuple[dict[str, Any], int, float]] = [  # settings, steps, bytes a parameter
    ({}, 17, 8.0),
    ({"residual_dtype": torch.bfloat16, "fragments": 4}, 17, 6.0),
    ({"density": 1.0, "decay": 1.0}, 17, 4.0),
    ({"sync_delay": 3}, 17, 20.0),  # in flight: the next residual, the mean, and the weights as they were
    ({"sync_delay": 3, "mixing": 0.5}, 17, 16.0),
    ({"sync_delay": 1, "fragments": 4}, 18, 8.0 + 12 / 4),
]


def held_by_entry(rank: int, world_size: int) -> list[float]:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(250, 250) for _ in range(8)))
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    before, found = held_bytes(), []
    for settings, steps, expected in HELD:
        local = LocalSteps(model, inner, sync_every=8, **settings)
        for _ in range(steps):
            local.step()
        deadline = time.monotonic() + 20
        while True:  # threads of the backend may still hold what has just arrived
            held = (held_bytes() - before) / sum(one.numel() for one in model.parameters())
            if held < expected + 0.6 or time.monotonic() > deadline:
                break
            os.sched_yield()
        found.append(held)
        local.finish()
        del local
    return found


def test_it_holds_eight_bytes_a_parameter(two_workers: Any) -> None:
    for found in two_workers.run(held_by_entry):
        for (settings, _, expected), held in zip(HELD, found, strict=True):
            assert abs(held - expected) < 0.6, (
                settings
            )  # the rest is what was packed and sent, here and in tests before


def bits_by_entry(rank: int, world_size: int, settings: dict[str, Any]) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 1024), nn.Tanh(), nn.Linear(1024, 1024), nn.Tanh(), nn.Linear(1024, 8))
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
    local = LocalSteps(model, inner, sync_every=2, **settings)
    kept = sent = 0
    for step in range(20):
        inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(100 * rank + step))
        inner.zero_grad()
        (model(inputs) - inputs[:, :8].sin()).square().mean().backward()
        inner.step()
        if local.step() and step > 4:
            kept, sent = kept + local.metrics.kept, sent + local.metrics.sent_bytes
    return 8 * sent / kept


def test_an_entry_takes_at_most_ten_bits(two_workers: Any) -> None:
    assert max(two_workers.run(bits_by_entry, {"density": 1 / 64})) <= 10


def message(work: Any) -> str:
    try:
        work()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "nothing was raised"


def changed(rank: int, world_size: int) -> list[str]:
    def freeze(model: Any, inner: Any) -> None:
        model[0].weight.requires_grad_(False)

    def grow(model: Any, inner: Any) -> None:
        model.append(nn.Linear(1, 1))

    def replace(model: Any, inner: Any) -> None:
        model[3] = nn.Linear(10, 1)

    def regroup(model: Any, inner: Any) -> None:
        inner.param_groups[0]["params"].pop()

    said = []
    for change in (freeze, grow, replace, regroup):
        model = net()
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        local = LocalSteps(model, inner, sync_every=1)
        local.step()
        change(model, inner)
        said.append(message(local.step))
    return said


def two_nodes(rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    """Ranks 0 and 1 are a node under DDP, 2 and 3 another; between nodes LocalSteps, once for each place in a node."""
    nodes = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    places = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    model = DistributedDataParallel(net(), process_group=nodes[rank // 2])
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    local = LocalSteps(model, inner, sync_every=4, group=places[rank % 2], fragments=2, sync_delay=1)
    between = torch.empty(0)
    for step in range(18):
        train(model, inner, rank, step)
        local.step()
        between = weights(model) if step == 13 else between  # nobody is to be alike there
    local.finish()
    return gathered(between), gathered(weights(model))


def test_a_node_may_train_under_ddp(four_workers: Any) -> None:
    for between, final in four_workers.run(two_nodes):
        assert torch.equal(between[0], between[1])
        assert torch.equal(between[2], between[3])
        assert not torch.equal(between[0], between[2])
        assert all(torch.equal(row, final[0]) for row in final)


def sharded(rank: int, world_size: int) -> tuple[float, str, str]:
    """As above, with FSDP2 in each node; returns how far it is from DDP there."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    def trained(model: nn.Module, group: Any) -> Tensor:
        inner = torch.optim.SGD(model.parameters(), lr=0.05)
        local = LocalSteps(model, inner, sync_every=3, group=group, compressor="topk", **EXACT)
        for step in range(9):
            train(model, inner, rank, step)
            local.step()
        found = [getattr(one, "full_tensor", lambda one=one: one)().detach().flatten() for one in model.parameters()]
        return torch.cat(found)

    nodes = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    places = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    mesh = DeviceMesh.from_group(nodes[rank // 2], "cpu")
    model = fully_shard(net(), mesh=mesh)
    found = trained(model, places[rank % 2])
    expected = trained(DistributedDataParallel(net(), process_group=nodes[rank // 2]), places[rank % 2])
    inner = torch.optim.SGD(model.parameters(), lr=0.05)
    same = message(lambda: LocalSteps(model, inner, group=nodes[rank // 2]))
    saved = message(lambda: LocalSteps(model, inner, group=places[rank % 2]).save("/nowhere"))
    return float((found - expected).abs().max()), same, saved


def test_a_node_may_share_the_model_out(four_workers: Any) -> None:
    for distance, same, saved in four_workers.run(sharded):
        assert distance < 1e-6
        assert same.startswith("model must not be under fully_shard (FSDP2) over the workers of LocalSteps' group")
        assert saved.startswith("model must have plain parameters for local.save, got shards of fully_shard")


def with_a_scaler(rank: int, world_size: int) -> Tensor:
    model = net()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    local = LocalSteps(model, inner, sync_every=3)
    skipped = 0
    for step in range(12):
        inputs, targets = batch(rank, step)
        inner.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        if rank == 1 and step in (4, 5):  # an overflow, in the last step before a round too
            loss = loss * math.inf
        scaler.scale(loss).backward()
        before = weights(model)
        scaler.step(inner)
        scaler.update()
        skipped += torch.equal(before, weights(model))
        local.step()
    assert skipped == 2 * rank
    return weights(model)


def test_steps_that_a_scaler_leaves_out_count(two_workers: Any) -> None:
    first, second = two_workers.run(with_a_scaler)
    assert torch.equal(first, second)
