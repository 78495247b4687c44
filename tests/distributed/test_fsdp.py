"""FSDP2: dense inside the shard group, sparse between replicas; what dense HSDP of torch gives is the reference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from tests.each import each
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank

MESHES = ((2, 2), (1, 4), (4, 1))
EXACT: dict[str, Any] = {"density": 1.0, "wire": "raw+fp32"}
SPARSE_OF_ALL = {**EXACT, "max_bytes": 10**6}  # k is everything, and yet selected, packed and put together again


@functools.cache
def mesh_of(replicas: int, shards: int) -> DeviceMesh:
    return init_device_mesh("cpu", (replicas, shards), mesh_dim_names=("replicate", "shard"))


class Block(nn.Module):
    """Rows of 13, 9 and 1 do not divide by the number of shards."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(9, 13)
        self.norm = nn.LayerNorm(13)
        self.narrow = nn.Linear(13, 9)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.norm(torch.relu(self.wide(x)))) * self.scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 9)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.last = nn.Linear(9, 3)

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        x = self.first(x)
        for block in self.blocks[:1] if skip else self.blocks:
            x = block(x)
        return self.last(x)


def net(mesh: DeviceMesh, **how: Any) -> Net:
    torch.manual_seed(0)
    return shard(Net(), mesh, **how)


def shard(model: Net, mesh: DeviceMesh, **how: Any) -> Net:
    for block in model.blocks:
        fully_shard(block.wide, mesh=mesh, **how)
        fully_shard(block, mesh=mesh, **how)
    fully_shard(model, mesh=mesh, **how)
    return model


def batch(rank: int, step: int) -> Tensor:
    return torch.randn(8, 7, generator=torch.Generator().manual_seed(100 * step + rank))


Step = Callable[[Net, torch.optim.Optimizer, int, int], None]


def plain(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    optimizer.zero_grad()
    model(batch(rank, step)).square().mean().backward()
    optimizer.step()


def beside_hsdp(rank: int, world_size: int, how: dict[str, Any], take: Step, steps: int, **wrapped: Any) -> None:
    for replicas, shards in MESHES:
        mesh = mesh_of(replicas, shards)
        models = net(mesh, **wrapped), net(mesh["shard"], **wrapped)
        compression = gaussiank.compress(models[1], mesh=mesh, **how)
        for model in models:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(steps):
                take(model, optimizer, rank, step)
        for dense, sparse in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(dense.full_tensor(), sparse.full_tensor(), rtol=1e-5, atol=1e-6)
        assert compression.step == steps
        assert compression.metrics.kept == compression.metrics.numel > 0


@each("how", [EXACT, SPARSE_OF_ALL, {**SPARSE_OF_ALL, "scope": "model"}, {**SPARSE_OF_ALL, "scope": "layer"}])
def test_density_one_is_dense_hsdp(four_workers: Any, how: dict[str, Any]) -> None:
    four_workers.run(beside_hsdp, how, plain, 8)


# ---------------------------------------------------------------------- the same as DDP on a mesh without shards


def like_ddp(rank: int, world_size: int, how: dict[str, Any]) -> None:
    mesh = mesh_of(world_size, 1)
    torch.manual_seed(0)
    ddp, sharded = DDP(Net()), net(mesh["shard"]) if how["scope"] == "layer" else one_module(mesh["shard"])
    compressions = gaussiank.compress(ddp, **how), gaussiank.compress(sharded, mesh=mesh, **how)
    for model in (ddp, sharded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(6):
            plain(model, optimizer, rank, step)
    for one, other in zip(ddp.parameters(), sharded.parameters(), strict=True):
        assert torch.equal(one, other.full_tensor())
    first, second = (compression.state_dict() for compression in compressions)
    assert (first["step"], first["rank"]) == (second["step"], second["rank"]) == (6, rank)
    for name, residual in first["feedback"]["residual"].items():
        assert torch.equal(residual, second["feedback"]["residual"][name])


def one_module(mesh: DeviceMesh) -> Net:
    torch.manual_seed(0)
    return fully_shard(Net(), mesh=mesh)


@each("scope", ["layer", "bucket", "model"])
@each("wire", ["raw+fp32", "rice+bf16-rice"])
def test_without_shards_it_is_ddp_to_the_bit(four_workers: Any, scope: str, wire: str) -> None:
    """Sums of other collectives depend on where a vector's entries lie, which DDP decides for its buckets."""
    four_workers.run(like_ddp, {"density": 0.01, "scope": scope, "wire": wire})


# ---------------------------------------------------------------------- nothing is lost


class Given(nn.Module):
    """A model whose gradients are what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        shapes: dict[str, tuple[int, ...]] = {"first": (10, 5), "second": (3,), "third": (64, 3)}
        self.weights = nn.ParameterDict({name: torch.zeros(shape) for name, shape in shapes.items()})
        self.inner = nn.ModuleList()

    def forward(self, fed: list[dict[str, Tensor]]) -> Tensor:
        own = torch.stack([(self.weights[name] * grad).sum() for name, grad in fed[0].items()]).sum()
        return own + sum(inner(fed[place + 1 :]) for place, inner in enumerate(self.inner))


def given(mesh: DeviceMesh) -> Given:
    model = Given()
    model.inner.extend(Given() for _ in range(2))
    for inner in model.inner:
        fully_shard(inner, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def feed(rank: int, step: int) -> list[dict[str, Tensor]]:
    """Multiples of 1/64, so that sums over steps and workers are exact."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [
        {name: torch.randn(one.shape, generator=generator).mul(64).round().div(64) for name, one in module.items()}
        for module in [Given().weights] * 3
    ]


def lost(rank: int, world_size: int, how: dict[str, Any]) -> None:
    """For each shard: sum over replicas of residual + R x sum of means == sum over replicas of all gradients."""
    for replicas, shards in MESHES:
        mesh = mesh_of(replicas, shards)
        model = given(mesh["shard"])
        compression = gaussiank.compress(model, mesh=mesh, **how)
        named = dict(model.named_parameters())
        means = {name: torch.zeros_like(one._local_tensor) for name, one in named.items()}
        given_all = {name: torch.zeros(one.shape) for name, one in named.items()}
        for step in range(4):
            model.zero_grad()
            fed = feed(rank, step)
            model(fed).backward()
            modules = [shard.path for shard in compression._shards if any(one.numel for one in shard.parameters)]
            assert compression.metrics.calls == (1 if how.get("scope") == "model" else len(modules))
            for name, one in named.items():
                means[name] += one.grad._local_tensor
                parts = name.split(".")  # inner.0.weights.first, or weights.first
                given_all[name] += fed[int(parts[1]) + 1 if len(parts) > 2 else 0][parts[-1]]
        for name, total in given_all.items():
            dist.all_reduce(total)
            residual = compression.feedback.residual(name)
            dist.all_reduce(residual, group=mesh.get_group("replicate"))
            expected = DTensor.from_local(total / shards, mesh["shard"], [Replicate()])
            local = expected.redistribute(placements=[Shard(0)])._local_tensor
            torch.testing.assert_close(residual + replicas * means[name], local, rtol=0, atol=2e-5)
        assert compression.step == 4


COLLECTIVES = ("allgather", "split", "tree", "leader", "hierarchical:ranks_per_node=1", "auto:mbit=1:message_us=1")


@each(
    "how",
    [
        *({"density": 0.1, "collective": collective} for collective in COLLECTIVES),
        *({"density": 0.1, "scope": scope, "compressor": "gaussiank"} for scope in ("layer", "model")),
        {"density": gaussiank.DenseStart(0.05, 2)},
        {"density": 0.1, "momentum": None, "max_bytes": 200},
    ],
)
def test_nothing_is_lost(four_workers: Any, how: dict[str, Any]) -> None:
    four_workers.run(lost, how)
