"""FSDP2's residuals go on: to the bit on the same mesh, and as DTensors on another."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tests.distributed.test_fsdp import MESHES, compressed, mesh_of, net, plain
from tests.each import each
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

import gaussiank


def resumed(rank: int, world_size: int, folder: str, plain_state: bool) -> None:
    mesh = mesh_of(2, 2)
    first, second = net(mesh["shard"]), net(mesh["shard"])
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (first, second)]
    one, other = (gaussiank.compress(model, mesh=mesh, density=0.05) for model in (first, second))
    for step in range(3):
        plain(first, optimizers[0], rank, step)
    if plain_state:
        other.load_state_dict(one.state_dict())
    else:
        one.save(folder)
        other.load(folder)
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        for model, optimizer in zip((first, second), optimizers, strict=True):
            plain(model, optimizer, rank, step)
    assert one.step == other.step == 6
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a.full_tensor(), b.full_tensor())


@each("plain_state", [True, False])
def test_a_run_goes_on_to_the_bit(four_workers: Any, plain_state: bool, tmp_path: Path) -> None:
    four_workers.run(resumed, str(tmp_path), plain_state)


def resharded(rank: int, world_size: int, folder: str, momentum: gaussiank.MomentumCorrection | None) -> None:
    """What training sees of residuals, the sum over replicas / replicas, is the same on every mesh."""

    def seen(compression: Any, mesh: DeviceMesh, kind: str) -> dict[str, Tensor]:
        whole, saved = {}, compression.state_dict()["feedback"][kind]
        for one in compression._parameters():
            held = saved.get(one.name, torch.zeros(one.numel)).view(one.local.shape)
            dist.all_reduce(held, group=mesh.get_group("replicate"))
            like = one.parameter.detach()
            like._local_tensor.copy_(held / mesh.size(0))
            whole[one.name] = like.full_tensor()
        return whole

    how = {"density": 0.05, "momentum": momentum}
    mesh = mesh_of(2, 2)
    model = net(mesh["shard"])
    compression = gaussiank.compress(model, mesh=mesh, **how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        plain(model, optimizer, rank, step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own files
        dcp.save({"model": model.state_dict(), **compression.dtensors()}, checkpoint_id=folder)
    kinds = ("residual", "velocity") if momentum else ("residual",)
    saved = {kind: seen(compression, mesh, kind) for kind in kinds}
    assert all(one.any() for one in saved["residual"].values())
    for replicas, shards in MESHES:
        other = mesh_of(replicas, shards)
        again = net(other["shard"])
        loaded = compressed(again, other, **how)
        loaded.load_dtensors(folder)
        assert loaded.step == 3
        for kind in kinds:
            for name, one in seen(loaded, other, kind).items():
                torch.testing.assert_close(one, saved[kind][name], rtol=1e-6, atol=1e-7)
        if (replicas, shards) == (2, 2):
            for name, _ in model.named_parameters():
                assert torch.equal(loaded.feedback.residual(name), compression.feedback.residual(name))
    with pytest.raises(ValueError, match=r"^state must be of a mesh of 4 replicas of 1 shards, got one of 2 "):
        gaussiank.compress(net(mesh_of(4, 1)["shard"]), mesh=mesh_of(4, 1), **how).load_state_dict(
            compression.state_dict()
        )


@each("momentum", [None, gaussiank.MomentumCorrection(0.5)])
def test_residuals_as_dtensors_load_on_every_mesh(
    four_workers: Any, momentum: gaussiank.MomentumCorrection | None, tmp_path: Path
) -> None:
    four_workers.run(resharded, str(tmp_path / "saved"), momentum)


def moments_resharded(rank: int, world_size: int, folder: str) -> None:
    """Second moments of a row are the same on every mesh, in the unit of the mean over its replicas."""

    def columns(one: nn.Parameter) -> Shard | None:
        return Shard(1) if one.ndim == 2 and one.shape[1] % 4 == 0 else None  # of the third, with 64 x 4

    def rows(compression: Any, mesh: DeviceMesh, kind: str) -> dict[str, Tensor]:
        saved, whole = compression.state_dict()["precondition"][kind], {}
        for one in compression._parameters():
            held = saved.get(one.name, torch.zeros(0))
            found: list[Any] = [None] * mesh.size(1)
            dist.all_gather_object(found, held, group=mesh.get_group("shard"))
            # of equal numbers of columns
            whole[one.name] = torch.cat(found) if one.dim == 0 else torch.stack(found).mean(0)
            replicas: list[Any] = [None] * mesh.size(0)
            dist.all_gather_object(replicas, whole[one.name], group=mesh.get_group("replicate"))
            assert all(torch.equal(other, whole[one.name]) for other in replicas)
        return whole

    def model_on(mesh: DeviceMesh) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(8, 13), nn.LayerNorm(13), nn.Linear(13, 5))
        fully_shard(model, mesh=mesh["shard"], shard_placement_fn=columns)
        rule = gaussiank.AdamRows(beta2=0.9)
        return model, compressed(model, mesh, density=0.2, precondition=rule, scope="layer")

    mesh = mesh_of(2, 2)
    stacked: Any = nn.Sequential(nn.Linear(8, 4))
    stacked.experts = nn.Parameter(torch.zeros(4, 2, 2))
    fully_shard(stacked, mesh=mesh["shard"])
    told = pytest.warns(UserWarning, match="outputs lie along another in 1 parameters, experts first")
    with told if rank == 0 else contextlib.nullcontext():
        compressed(stacked, mesh, density=0.2, precondition=gaussiank.AdamRows())
    named = gaussiank.AdamRows(outputs={"0.weight": 1})
    with pytest.raises(ValueError, match=r"outputs of AdamRows must be empty for a sharded model, got {'0.weight': 1}"):
        compressed(net(mesh["shard"]), mesh, density=0.2, precondition=named)
    model, compression = model_on(mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 8, generator=torch.Generator().manual_seed(10 * step + rank))).square().mean().backward()
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own files
        dcp.save({"model": model.state_dict(), **compression.dtensors()}, checkpoint_id=folder)
    saved = {kind: rows(compression, mesh, kind) for kind in ("moment", "weight")}
    assert all(one.all() for kind in saved.values() for one in kind.values())
    for replicas, shards in ((2, 2), *MESHES):
        other = mesh_of(replicas, shards)
        again, loaded = model_on(other)
        loaded.load_dtensors(folder)
        for kind, unit in (("moment", 2 / replicas), ("weight", 1.0)):
            for name, one in rows(loaded, other, kind).items():
                torch.testing.assert_close(one, saved[kind][name] * unit, rtol=1e-6, atol=0)
        again(torch.ones(2, 8)).sum().backward()  # goes on
    bare = gaussiank.compress(net(mesh["shard"]), mesh=mesh, density=0.2)
    with pytest.raises(
        ValueError, match=r"^checkpoint must hold a residual of|^state must be of a run without precond"
    ):
        bare.load_dtensors(folder)


def test_second_moments_as_dtensors_load_on_every_mesh(four_workers: Any, tmp_path: Path) -> None:
    four_workers.run(moments_resharded, str(tmp_path / "saved"))


def on_another_mesh(rank: int, world_size: int, folder: str) -> None:
    """As many files as workers, and yet another mesh: what helps is said, and nothing changes."""
    first, other = mesh_of(2, 1), mesh_of(1, 2)
    compressed(net(first["shard"]), first, density=0.05).save(folder)
    loading = compressed(net(other["shard"]), other, density=0.05)
    state = compressed(net(first["shard"]), first, density=0.05).state_dict()
    for load in (lambda: loading.load(folder), lambda: loading.load_state_dict(state)):
        with pytest.raises(
            ValueError, match=r"^state must be of a mesh of 1 replicas of 2 shards, got one of 2 .*dtensor"
        ):
            load()


def test_a_folder_of_another_mesh_is_refused_with_what_moves_it(two_workers: Any, tmp_path: Path) -> None:
    two_workers.run(on_another_mesh, str(tmp_path))
