"""Local steps that go on: saved and resumed, killed, among other workers, in other fragments."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tests.distributed.test_local_steps import (
    agreed_of,
    gathered,
    made,
    message,
    residual_of,
    train,
    weights,
)
from torch import Tensor, nn

from gaussiank import LocalSteps, checkpoint

RESUMED: list[dict[str, Any]] = [
    {},
    {"fragments": 3, "sync_delay": 3, "collective": "split", "outer_optimizer": "nesterov"},
    {"fragments": 2, "sync_delay": 2, "mixing": 0.5, "residual_dtype": torch.bfloat16, "compressor": "gaussiank"},
    {"density": 1.0, "sync_delay": 1, "offload": "cpu"},
    {"density": 0.1, "fragments": 2, "scope": "layer", "compressor": "gaussiank"},
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
    """Save at every step of a run; from each save in a whole turn of six steps, another run ends with the same bits."""
    model, inner, local = setting(**settings)
    for step in range(11):
        train(model, inner, rank, step)
        local.step()
        local.save(f"{folder}/{step}")
    final = everything(model, local)
    for begin in range(2, 10):
        model, inner, local = setting(**settings)
        if begin % 5 == 0:
            train(model, inner, rank, 77)
            local.step()
        local.load(f"{folder}/{begin}")
        for step in range(begin + 1, 11):
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
    model, inner, local = setting(fragments=2, sync_delay=2)
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


SAVED_BEFORE = {"sync_every": 30, "density": 1 / 64, "decay": 0.95}
"""The defaults of f08db6b, which wrote ``tests/fixtures/local_v1`` at step 45 of 95; its states tell no settings."""
ENDS = ("693710491f5d550a", "08ac192ca08e411a")  # of that run's weights, agreed weights and residuals, by rank


def begun(rank: int, **settings: Any) -> tuple[nn.Module, LocalSteps, Callable[[int, int], str]]:
    """A model of 50 entries whose steps are exact in float32, and what trains it and hashes how it ended."""
    model = nn.Linear(9, 5)
    for one in model.parameters():
        one.data = torch.arange(one.numel()).view_as(one) / 64 - 0.25
    inner = torch.optim.SGD(model.parameters(), lr=0.125)
    local = LocalSteps(model, inner, **settings)

    def trained(begin: int, end: int) -> str:
        for step in range(begin, end):
            for number, one in enumerate(model.parameters()):
                places = torch.arange(one.numel()) * (7 + rank) + step * 5 + number
                one.grad = (places % 11 - 5).view_as(one) / 64
            inner.step()
            local.step()
        found = torch.cat([weights(model), agreed_of(local), residual_of(local)])
        return hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16]

    return model, local, trained


def of_older_defaults(rank: int, world_size: int, folder: str) -> tuple[str, str]:
    _, local, trained = begun(rank, **SAVED_BEFORE)
    local.load(folder)
    end = trained(45, 95)
    return end, message(lambda: begun(rank)[1].load(folder))


def test_states_of_older_defaults_go_on_to_the_same_bits_or_are_refused(two_workers: Any, fixtures: Path) -> None:
    for rank, (end, said) in enumerate(two_workers.run(of_older_defaults, str(fixtures / "local_v1"))):
        assert end == ENDS[rank]
        assert said.startswith("sync_every must be that of the state, got 10 for 1 rounds in 45 steps. ")
        assert "sync_every=30, density=1 / 64, decay=0.95: give LocalSteps these" in said


def under_other_settings(rank: int, world_size: int, folder: str) -> list[str]:
    begun(rank, **SAVED_BEFORE)[1].save(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        begun(rank, **SAVED_BEFORE, check_every=3)[1].load(folder)  # changes no bit
        assert not caught
        begun(rank, **{**SAVED_BEFORE, "decay": 1.0}, mixing=0.5, sync_delay=2)[1].load(folder)
    return [str(one.message) for one in caught]


def test_another_setting_than_the_states_is_told_by_one_rank(two_workers: Any, tmp_path: Path) -> None:
    first, second = two_workers.run(under_other_settings, str(tmp_path))
    assert second == []
    assert [text.partition(": it")[0] for text in first] == [
        "state is of a run with decay=0.95, sync_delay=0, mixing=None, "
        "LocalSteps was made with decay=1.0, sync_delay=2, mixing=0.5"
    ]


def test_a_killed_run_goes_on_to_the_same_bits() -> None:
    script = Path(__file__).parents[2] / "scripts" / "kill_local_steps.py"
    run = subprocess.run([sys.executable, script, "--count", "1"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("the same bits") == 2


def sharded_out(rank: int, world_size: int, folder: str) -> None:
    from torch.distributed.checkpoint import FileSystemWriter, save

    model, inner, local = setting(fragments=2, sync_delay=2, density=0.1)
    for step in range(10):
        train(model, inner, rank, step)
        local.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own files
        save(checkpoint.shards(local, rank), storage_writer=FileSystemWriter(folder))
    before, state = everything(model, local), local.state_dict()
    model, inner, local = setting(fragments=2, sync_delay=2, density=0.1)
    local.load_state_dict(checkpoint.load_shards(folder, rank, world_size))
    assert torch.equal(everything(model, local)[:1000], before[:1000])
    assert torch.equal(residual_of(local), torch.cat(list(state["feedback"]["residual"].values())))
    spoilt = {**state, "agreed": {**state["agreed"], "0.bias": state["agreed"]["0.bias"] + rank}}
    assert "hash of the agreed weights, must be the same on every worker" in message(
        lambda: local.load_state_dict(spoilt)
    )
    del spoilt["outer_optimizer"]
    assert "state must be what LocalSteps.state_dict returned" in message(lambda: local.load_state_dict(spoilt))


def test_its_state_goes_through_torchs_distributed_checkpoint(two_workers: Any, tmp_path: Any) -> None:
    two_workers.run(sharded_out, str(tmp_path))
    alone = checkpoint.load_shards(tmp_path, 0, 1)
    assert alone["flights"]
    assert torch.equal(alone["agreed"]["0.bias"], alone["local"]["0.bias"])


def joined(rank: int, world_size: int, delay: int) -> tuple[Tensor, Tensor, str]:
    """Ranks 0 and 1 train, then rank 2 joins them; returns what each has yet to give before and after."""
    pair = dist.new_group([0, 1])
    state, before = None, torch.zeros(1)
    settings = {"density": 0.1, "fragments": 2, "sync_delay": delay}
    if rank < 2:
        model, inner, local = setting(**settings, group=pair)
        for step in range(10):
            train(model, inner, rank, step)
            local.step()
        state, before = local.state_dict(inner=True), mass(model, local)
    model, inner, local = setting(**settings)
    local.load_state_dict(state)
    after = mass(model, local)
    assert torch.equal(agreed_of(local), weights(model))
    if rank == 2:
        assert not residual_of(local).any()
    for step in range(10, 22):
        train(model, inner, rank, step)
        local.step()
    agreed = gathered(agreed_of(local))
    assert all(torch.equal(row, agreed[0]) for row in agreed)
    return before, after, message(lambda: local.load_state_dict(None if rank else state))


def test_a_new_worker_begins_with_an_empty_residual(three_workers: Any) -> None:
    for delay in (0, 2):
        answers = three_workers.run(joined, delay)
        before = (answers[0][0] + answers[1][0]) / 2
        after = sum(answer[1] for answer in answers) / 3
        torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-8)
        assert all("states must be those of all workers that were saved, got 1 of 2" in said for _, _, said in answers)


def sharded_and_resumed(rank: int, world_size: int, folder: str) -> None:
    """FSDP2 in each node, saved as docs/fsdp.md says; the moments of two replicas are not the same."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    moments = f"optimizer{mesh.get_local_rank('replicate')}"

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, LocalSteps]:
        torch.manual_seed(0)
        model = fully_shard(nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4)), mesh=mesh["shard"])
        inner = torch.optim.AdamW(model.parameters(), lr=0.01)
        return model, inner, LocalSteps(model, inner, group=mesh.get_group("replicate"), sync_every=3)

    def goes_on(model: nn.Module, inner: torch.optim.Optimizer, local: LocalSteps, begin: int, end: int) -> Tensor:
        for step in range(begin, end):
            inputs = torch.randn(8, 16, generator=torch.Generator().manual_seed(100 * step + rank))
            inner.zero_grad()
            model(inputs).square().mean().backward()
            inner.step()
            local.step()
        return torch.cat([one.detach().to_local().flatten() for one in model.parameters()])

    model, inner, local = fresh()
    goes_on(model, inner, local, 0, 4)
    kept, of_optimizer = get_state_dict(model, inner)
    dcp.save({"model": kept, moments: of_optimizer, **checkpoint.shards(local, rank)}, checkpoint_id=folder)
    expected = goes_on(model, inner, local, 4, 8)
    model, inner, local = fresh()
    kept, of_optimizer = get_state_dict(model, inner)
    dcp.load({"model": kept, moments: of_optimizer}, checkpoint_id=folder)
    set_state_dict(model, inner, model_state_dict=kept, optim_state_dict=of_optimizer)
    local.load_state_dict(checkpoint.load_shards(folder, rank, world_size))
    assert torch.equal(goes_on(model, inner, local, 4, 8), expected)


def test_shards_resume_to_the_bit_where_each_replica_has_its_moments(four_workers: Any, tmp_path: Path) -> None:
    four_workers.run(sharded_and_resumed, str(tmp_path))
