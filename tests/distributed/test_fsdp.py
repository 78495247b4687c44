"""FSDP2: dense inside the shard group, sparse between replicas; what dense HSDP of torch gives is the reference."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.each import each
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint

import gaussiank

MESHES = ((2, 2), (1, 4), (4, 1))
EXACT: dict[str, Any] = {"density": 1.0, "wire": "raw+fp32"}
SPARSE_OF_ALL = {**EXACT, "max_bytes": 10**6}  # k is everything, and yet selected, packed and put together again


@functools.cache
def mesh_of(replicas: int, shards: int) -> DeviceMesh:
    return init_device_mesh("cpu", (replicas, shards), mesh_dim_names=("replicate", "shard"))


def compressed(model: nn.Module, mesh: DeviceMesh, **how: Any) -> Any:
    """Compress it; on a mesh of one replica that says so, once."""
    told = mesh.size(0) == 1 < mesh.size(1) and dist.get_rank() == 0
    sentence = f"^nothing is compressed on a mesh of one replica with {mesh.size(1)} shards: "
    with pytest.warns(UserWarning, match=sentence) if told else contextlib.nullcontext():
        return gaussiank.compress(model, mesh=mesh, **how)


class Block(nn.Module):
    """Rows of 13, 9 and 1 do not divide by the number of shards."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(9, 13)
        self.norm = nn.LayerNorm(13)
        self.narrow = nn.Linear(13, 9)
        self.scale = nn.Parameter(torch.ones(1))
        self.bare = False

    def forward(self, x: Tensor) -> Tensor:
        more = self.narrow(self.norm(torch.relu(self.wide(x))))
        return x + more if self.bare else x + more * self.scale


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


def beside_hsdp(
    rank: int,
    world_size: int,
    how: dict[str, Any],
    take: Step,
    steps: int,
    meshes: tuple[tuple[int, int], ...] = MESHES,
    **wrapped: Any,
) -> None:
    for replicas, shards in meshes:
        mesh = mesh_of(replicas, shards)
        models = net(mesh, **wrapped), net(mesh["shard"], **wrapped)
        compression = compressed(models[1], mesh, **how)
        for model in models:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(steps):
                take(model, optimizer, rank, step)
        for dense, sparse in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(dense.full_tensor(), sparse.full_tensor(), rtol=1e-5, atol=1e-6)
        # before torch shows a step of an optimizer, every backward counts
        assert compression.step == steps + (take is several_backwards)
        assert compression.metrics.kept == compression.metrics.numel > 0
        assert not any(compression.feedback.residual(name).any() for name, _ in models[1].named_parameters())


@each("how", [EXACT, SPARSE_OF_ALL, {**SPARSE_OF_ALL, "scope": "model"}])
def test_density_one_is_dense_hsdp(four_workers: Any, how: dict[str, Any]) -> None:
    four_workers.run(beside_hsdp, how, plain, 4)


def accumulated(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    optimizer.zero_grad()
    for micro in range(3):
        model.set_requires_gradient_sync(micro == 2)
        model(batch(rank, 10 * step + micro)).square().mean().backward()
    optimizer.step()


def reduced_each(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    """HSDP's own accumulation: reduce-scatter each backward, and go over the replicas with the last."""
    optimizer.zero_grad()
    for micro in range(3):
        model.set_requires_all_reduce(micro == 2)
        model(batch(rank, 10 * step + micro)).square().mean().backward()
    optimizer.step()


def several_backwards(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    optimizer.zero_grad()
    for micro in range(2):
        model(batch(rank, 10 * step + micro)).square().mean().backward()
    optimizer.step()


def clipped(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    optimizer.zero_grad()
    model(batch(rank, step)).square().mean().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    norms = [torch.empty(()) for _ in range(4)]
    dist.all_gather(norms, norm.full_tensor())
    assert len(set(map(float, norms))) == 1
    optimizer.step()


def unused(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    """A block that no worker uses in every second step; its parameters have no gradient."""
    optimizer.zero_grad()
    model(batch(rank, step), step % 2 == 0).square().mean().backward()
    optimizer.step()


def unused_in_part(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    """A parameter of a block that is used: what follows it in the vector moves up."""
    for block in model.blocks:
        block.bare = step % 2 == 0
    plain(model, optimizer, rank, step)


def unused_on_one(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    model.set_reduce_scatter_unused_params(True)
    for block in model.blocks:
        block.bare = step % 2 == 0 and rank == 1
    plain(model, optimizer, rank, step)


def sums(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    """What a loop does that divides the loss itself."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    optimizer.zero_grad()
    (model(batch(rank, step)).square().mean() / 4).backward()
    optimizer.step()


def frozen(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    for name, one in model.named_parameters():
        one.requires_grad_("wide" not in name and name != "first.weight")
    plain(model, optimizer, rank, step)


def checkpointed(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    for block in model.blocks:
        if not hasattr(block, "given"):
            block.given = block.forward
            block.forward = functools.partial(checkpoint, block.given, use_reentrant=False)
    plain(model, optimizer, rank, step)


def compiled(model: Net, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    if step == 0:
        model.blocks[0].wide.compile(backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dynamo, about torch's own hooks
        plain(model, optimizer, rank, step)


BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
LOOPS: list[tuple[Step, dict[str, Any]]] = [
    *((take, {}) for take in (accumulated, reduced_each, several_backwards, clipped, unused)),
    *((take, {}) for take in (unused_in_part, unused_on_one, sums, frozen, checkpointed, compiled)),
    *((plain, {"reshard_after_forward": reshard}) for reshard in (False, True)),
    (plain, {"mp_policy": BF16}),
    (plain, {"offload_policy": CPUOffloadPolicy(pin_memory=False)}),
    (plain, {"shard_placement_fn": lambda one: Shard(1) if one.ndim == 2 and one.shape[1] % 4 == 0 else None}),
]


def in_loops(rank: int, world_size: int, numbers: range, how: dict[str, Any]) -> None:
    for number in numbers:
        take, wrapped = LOOPS[number]
        try:
            beside_hsdp(rank, world_size, how, take, 2, MESHES[:1], **wrapped)
        except Exception as error:
            raise RuntimeError(f"{take.__name__} with {wrapped} and {how}") from error


@each("how", [SPARSE_OF_ALL, {**SPARSE_OF_ALL, "scope": "model"}])
def test_every_loop_is_that_of_dense_hsdp(four_workers: Any, how: dict[str, Any]) -> None:
    four_workers.run(in_loops, range(len(LOOPS)), how)


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


def given(mesh: DeviceMesh, **how: Any) -> Given:
    model = Given()
    model.inner.extend(Given() for _ in range(2))
    for inner in model.inner:
        fully_shard(inner, mesh=mesh, **how)
    return fully_shard(model, mesh=mesh, **how)


def feed(rank: int, step: int) -> list[dict[str, Tensor]]:
    """Multiples of 1/4, so that sums over steps and workers are exact, in 16 bits too."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [
        {name: torch.randn(one.shape, generator=generator).mul(4).round().div(4) for name, one in module.items()}
        for module in [Given().weights] * 3
    ]


def lost(rank: int, world_size: int, how: dict[str, Any], reduce_dtype: torch.dtype | None) -> None:
    """For each shard: sum over replicas of residual + R x sum of means == sum over replicas of all gradients."""
    policy = MixedPrecisionPolicy(reduce_dtype=reduce_dtype)
    for replicas, shards in MESHES:
        mesh = mesh_of(replicas, shards)
        model = given(mesh["shard"], mp_policy=policy)
        compression = compressed(model, mesh, **how)
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
            residual = compression.feedback.residual(name) / compression._unit
            assert residual.dtype == torch.float32
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
    four_workers.run(lost, how, None)


@each("dtype", [torch.bfloat16, torch.float16])
@each("scope", ["bucket", "model"])
def test_nothing_is_lost_in_16_bits(four_workers: Any, dtype: torch.dtype, scope: str) -> None:
    four_workers.run(lost, {"density": 0.1, "scope": scope}, dtype)


# ---------------------------------------------------------------------- clipping, infinities, scalers


def clipped_before(rank: int, world_size: int, scope: str) -> None:
    """The gradient of a replica is clipped by its norm over all shards, as DDP clips one that is whole."""
    mesh = mesh_of(2, 2)
    model = given(mesh["shard"])
    compression = gaussiank.compress(model, mesh=mesh, scope=scope, clip_norm=1.0, **SPARSE_OF_ALL)
    model(feed(0, 0)).backward()  # the same everywhere: the mean is each replica's own
    grads = [one.grad.full_tensor().flatten() for module in (model, *model.inner) for one in module.weights.values()]
    whole = [grad.flatten() for module in feed(0, 0) for grad in module.values()]
    together = {"model": 9, "bucket": 3, "layer": 1}[scope]
    for places in (range(start, start + together) for start in range(0, 9, together)):
        own, limit = torch.cat([whole[i] for i in places]), (len(places) / 9) ** 0.5
        expected = own * min(1.0, limit / float(own.norm()))
        torch.testing.assert_close(torch.cat([grads[i] for i in places]), expected, rtol=1e-5, atol=1e-6)
    assert compression.step == 1


@each("scope", ["bucket", "model", "layer"])
def test_a_replicas_gradient_is_clipped_by_its_norm_over_all_shards(four_workers: Any, scope: str) -> None:
    four_workers.run(clipped_before, scope)


def nonfinite(rank: int, world_size: int, scope: str) -> str:
    mesh = mesh_of(2, 2)
    model = given(mesh["shard"])
    compression = gaussiank.compress(model, mesh=mesh, density=0.1, scope=scope, on_nonfinite="raise")
    fed = feed(rank, 0)
    if rank == 3:
        fed[1]["first"][0, 0] = torch.inf  # in shard 0 alone
    try:
        model(fed).backward()
    except RuntimeError as error:
        model.reset_iter_state()
        model.zero_grad()
        model(feed(rank, 1)).backward()
        assert compression.step == 1
        return str(error)
    return "nothing"


@each("scope", ["bucket", "model"])
def test_infinity_in_one_shard_is_raised_on_every_worker(four_workers: Any, scope: str) -> None:
    for rank, said in enumerate(four_workers.run(nonfinite, scope)):
        other = "gradients must be finite, got infinity or NaN in another shard in step 0"
        assert (other if rank % 2 else "gradient of inner.0.weights.first must be finite") in said


def scaled(rank: int, world_size: int, scope: str) -> None:
    """An overflow changes neither weights nor residuals, of any shard; a new scale is that of the residuals too."""
    mesh = mesh_of(2, 2)
    model = given(mesh["shard"])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    compression = gaussiank.compress(model, mesh=mesh, density=0.1, scope=scope, scaler=scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept: list[tuple[Tensor, Tensor]] = []
    for step in range(4):
        fed = feed(rank, step)
        if step == 2 and rank == 3:
            fed[1]["first"][0, 0] = torch.inf
        before = kept[-1] if kept else None
        optimizer.zero_grad()
        scale = scaler.get_scale()
        scaler.scale(model(fed)).backward()
        scaler.step(optimizer)
        scaler.update()
        names = [name for name, _ in model.named_parameters()]
        weights = torch.cat([one._local_tensor.detach().flatten() for one in model.parameters()])
        kept.append((weights.clone(), compression.feedback.residuals(names) / scale))
        if step == 2:
            assert before is not None
            assert all(torch.equal(one, other) for one, other in zip(before, kept[-1], strict=True))
    assert compression.step == 3


@each("scope", ["bucket", "model"])
def test_an_overflow_leaves_no_trace_in_any_shard(four_workers: Any, scope: str) -> None:
    four_workers.run(scaled, scope)


# ---------------------------------------------------------------------- first parameters, saved states


def different(rank: int, world_size: int) -> None:
    mesh = mesh_of(2, 2)
    torch.manual_seed(rank // 2)
    model = shard(Net(), mesh["shard"])
    gaussiank.compress(model, mesh=mesh)
    torch.manual_seed(0)
    for one, first in zip(model.parameters(), Net().parameters(), strict=True):
        assert torch.equal(one.full_tensor(), first)


def test_replicas_begin_with_the_parameters_of_the_first(four_workers: Any) -> None:
    four_workers.run(different)


def example(rank: int, world_size: int, path: str) -> None:
    """The program itself, in the group that is there."""
    spec = importlib.util.spec_from_file_location("fsdp2_hsdp", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["fsdp2_hsdp.py", "--steps", "2"])
        for name in ("init_process_group", "destroy_process_group"):
            patch.setattr(dist, name, lambda *_: None)
        module.main()


def test_the_example_runs(four_workers: Any) -> None:
    four_workers.run(example, str(Path(__file__).parents[2] / "examples" / "fsdp2_hsdp.py"))


def local_steps(rank: int, world_size: int) -> None:
    """Dense FSDP2 inside, local steps between: replicas go apart, and agree on every shard after each round."""
    mesh = mesh_of(2, 2)
    model = net(mesh["shard"])
    first = [one.full_tensor().detach().clone() for one in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    local = gaussiank.LocalSteps(model, optimizer, sync_every=2, group=mesh.get_group("replicate"))
    apart = []
    for step in range(6):
        plain(model, optimizer, rank, step)
        local.step()
        spread = torch.cat([one._local_tensor.detach().flatten() for one in model.parameters()])
        dist.broadcast(other := spread.clone(), group=mesh.get_group("replicate"), group_src=0)
        apart.append(not torch.equal(spread, other))
    assert apart == [rank >= 2 and step % 2 == 0 for step in range(6)]
    assert local.metrics.numel == len(spread)
    assert any(not torch.equal(one.full_tensor(), was) for one, was in zip(model.parameters(), first, strict=True))


def test_local_steps_between_sharded_replicas(four_workers: Any) -> None:
    four_workers.run(local_steps)
