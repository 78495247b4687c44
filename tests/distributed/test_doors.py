"""One set of laws for every wrapper that ``compress`` takes: DDP, and FSDP2 of one shard or of two.

Gradients are given, in multiples of 1/4, so that sums are exact: what went in is known for every entry.
"""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank

SHAPES = {"first": (10, 5), "second": (3,), "third": (64, 3)}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"scope": "layer", "collective": "split"},
    {"scope": "model"},
    {"residual_dtype": torch.bfloat16},
]
NARROW_ATOL = 0.1  # 2^-8 of residuals up to 6, some steps of rounding at random


class Given(nn.Module):
    """A model whose gradients are what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name: torch.zeros(shape) for name, shape in SHAPES.items()})

    def forward(self, fed: dict[str, Tensor]) -> Tensor:
        return torch.stack([(self.weights[name] * grad).sum() for name, grad in fed.items()]).sum()


@cache
def mesh_of(replicas: int, shards: int) -> DeviceMesh:
    """Return the mesh of all cases, because each new one has groups whose threads wake a hundred times a second."""
    return init_device_mesh("cpu", (replicas, shards), mesh_dim_names=("outer", "inner"))


class Door:
    """A compressed model behind one of the doors, and what differs between them.

    Args:
        kind: ``ddp``, or ``fsdp`` and the number of shards.
        how: given to ``compress``.
    """

    def __init__(self, kind: str, **how: Any) -> None:
        how, shards = {"density": 0.1, "wire": "raw+fp32", **how}, int(kind[4:] or 1) if kind != "ddp" else 1
        self.workers, self.rank = dist.get_world_size(), dist.get_rank()
        self.replicas = self.workers // shards
        if kind == "ddp":
            self.model: Any = DDP(Given())
            self.compression = gaussiank.compress(self.model, **how)
        else:
            mesh = mesh_of(self.replicas, shards)
            self.model = fully_shard(Given(), mesh=mesh["inner"])
            self.compression = gaussiank.compress(self.model, mesh=mesh, **how)
        self.kind, self.mesh = kind, None if kind == "ddp" else mesh
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)

    def fed(self, turn: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * turn + self.rank)
        return {name: torch.randn(shape, generator=generator).mul(4).round().div(4) for name, shape in SHAPES.items()}

    def backward(self, turn: int, *, factor: float = 1.0, scaler: Any = None) -> None:
        loss = self.model(self.fed(turn)) * factor
        (scaler.scale(loss) if scaler else loss).backward()

    def step(self, turn: int) -> None:
        self.optimizer.zero_grad()
        self.backward(turn)
        self.optimizer.step()

    @contextlib.contextmanager
    def without_exchange(self) -> Any:
        """What each wrapper calls accumulation."""
        if self.kind == "ddp":
            with self.model.no_sync():
                yield
        else:
            self.model.set_requires_gradient_sync(False)
            yield
            self.model.set_requires_gradient_sync(True)

    def named(self) -> dict[str, nn.Parameter]:
        return dict((self.model.module if self.kind == "ddp" else self.model).named_parameters())

    def whole(self, vector: Tensor, like: nn.Parameter) -> Tensor:
        """A shard's vector, in the shape of the parameter that it is of."""
        if not isinstance(like.data, DTensor):
            return vector.view(like.shape)
        held = DTensor.from_local(
            vector.view(like.data._local_tensor.shape), like.data.device_mesh, like.data.placements,
            shape=like.shape, stride=like.stride(),
        )  # fmt: skip
        return held.full_tensor()

    def kept(self) -> dict[str, Tensor]:
        """The sum over replicas of all residuals, by parameter."""
        sums = {}
        for name, one in self.named().items():
            held = self.compression.feedback.residual(name).float()
            held = self.whole(held if held.numel() == self.local(one) else torch.zeros(self.local(one)), one)
            dist.all_reduce(held)
            sums[name] = held * self.replicas / self.workers
        return sums

    def local(self, one: nn.Parameter) -> int:
        return getattr(one.data, "_local_tensor", one.data).numel()

    def weights(self) -> dict[str, Tensor]:
        return {name: self.full(one.detach()) for name, one in self.named().items()}

    def full(self, one: Tensor) -> Tensor:
        return one.full_tensor() if isinstance(one, DTensor) else one.clone()

    def gone(self, turns: list[int]) -> dict[str, Tensor]:
        """What all gradients of some turns sum to, over workers, as replicas see it."""
        total = {f"weights.{name}": torch.zeros(shape) for name, shape in SHAPES.items()}
        for turn in turns:
            for name, grad in self.fed(turn).items():
                total[f"weights.{name}"] += grad
        for one in total.values():
            dist.all_reduce(one)
            one.mul_(self.replicas / self.workers)
        return total

    def require_nothing_lost(self, turns: list[int], steps: int) -> None:
        """``sum of residuals + replicas x what the weights took == sum of gradients``, and replicas agree."""
        kept, weights = self.kept(), self.weights()
        narrow = self.compression.config.get("residual_dtype") is not None
        for name, given in self.gone(turns).items():
            found = kept[name] - self.replicas * weights[name]
            torch.testing.assert_close(found, given, rtol=0, atol=NARROW_ATOL if narrow else 2e-5)
            dist.broadcast(other := weights[name].clone(), 0)
            assert torch.equal(other, weights[name])
        assert self.compression.step == steps


def laws(rank: int, world_size: int, kind: str, how: dict[str, Any]) -> None:
    try:
        for law in (ordinary, accumulated, several_backwards, skipped, not_finite, scaled, clipped, saved):
            law(Door(kind, **how), kind, how)
    except BaseException as error:
        raise RuntimeError(f"{law.__name__} of {kind} with {how}") from error


def ordinary(door: Door, *_: Any) -> None:
    for turn in range(4):
        door.step(turn)
    door.require_nothing_lost([0, 1, 2, 3], 4)
    assert 0 < door.compression.metrics.kept <= door.compression.metrics.numel


def accumulated(door: Door, *_: Any) -> None:
    for turn in (0, 2):
        door.optimizer.zero_grad()
        with door.without_exchange():
            door.backward(turn)
        door.backward(turn + 1)
        door.optimizer.step()
    door.require_nothing_lost([0, 1, 2, 3], 2)


def several_backwards(door: Door, *_: Any) -> None:
    """Two that exchange into one step count as one."""
    door.step(0)
    door.optimizer.zero_grad()
    door.backward(1)
    door.backward(2)
    door.optimizer.step()
    door.require_nothing_lost([0, 1, 2], 2)


def skipped(door: Door, *_: Any) -> None:
    """A step that the loop leaves out has left no trace, and so has a state that is taken between."""
    door.step(0)
    for forget in (door.optimizer.zero_grad, door.compression.discard):
        door.optimizer.zero_grad()
        door.backward(1, factor=1e6)
        assert door.compression.state_dict()["step"] == 1
        forget()
    door.step(2)
    door.require_nothing_lost([0, 2], 2)


def not_finite(door: Door, *_: Any) -> None:
    """A NaN on one worker comes to all that hold the same entries, and changes no residual."""
    door.step(0)
    before = door.kept()
    door.optimizer.zero_grad()
    door.backward(1, factor=float("nan") if door.rank == 1 else 1.0)
    bad = [not torch.isfinite(door.full(one.grad)).all() for one in door.named().values()]
    assert any(bad)
    after = door.kept()
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    door.step(2)
    door.require_nothing_lost([0, 2], 2)


def scaled(_: Door, kind: str, how: dict[str, Any]) -> None:
    """A ``GradScaler`` skips what overflows, everywhere, and residuals follow its scale."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    door = Door(kind, **how, scaler=scaler)
    for turn in range(4):
        door.optimizer.zero_grad()
        door.backward(turn, factor=float("inf") if turn == 2 and door.rank == 0 else 1.0, scaler=scaler)
        scaler.step(door.optimizer)
        scaler.update()
    kept, scale = door.kept(), float(door.compression._reducer._scale)
    assert door.compression.step == 3
    narrow = "residual_dtype" in how
    for name, given in door.gone([0, 1, 3]).items():
        found = kept[name] / scale - door.replicas * door.weights()[name]
        torch.testing.assert_close(found, given, rtol=0, atol=NARROW_ATOL if narrow else 2e-5)


def clipped(door: Door, *_: Any) -> None:
    """``clip_grad_norm_`` sees one norm on all workers, and cuts them alike."""
    door.backward(0)
    norm = nn.utils.clip_grad_norm_(door.model.parameters(), 0.01)
    norms = [torch.zeros(()) for _ in range(door.workers)]
    dist.all_gather(norms, door.full(norm))
    assert len(set(map(float, norms))) == 1
    after = torch.cat([door.full(one.grad).flatten() for one in door.named().values()]).norm()
    torch.testing.assert_close(after, torch.tensor(0.01), rtol=1e-3, atol=0)


def saved(door: Door, kind: str, how: dict[str, Any]) -> None:
    """A run goes on to the bit, and a state of other settings of the model is refused."""
    for turn in range(3):
        door.step(turn)
    folder = Path(FOLDER[0]) / f"{kind} {len(how)} {sorted(map(str, how))}"
    door.compression.save(folder)
    again = Door(kind, **how)
    again.compression.load(folder)
    with torch.no_grad():
        for one, other in zip(again.named().values(), door.named().values(), strict=True):
            one.copy_(other)
    for turn in range(3, 5):
        door.step(turn)
        again.step(turn)
    assert all(torch.equal(one, again.weights()[name]) for name, one in door.weights().items())
    again.require_nothing_lost(list(range(5)), 5)


FOLDER = [""]


def all_laws(rank: int, world_size: int, folder: str, kinds: tuple[str, ...]) -> None:
    FOLDER[0] = folder
    for kind in kinds:
        for how in SETTINGS:
            laws(rank, world_size, kind, how)


@pytest.mark.parametrize("kinds", [("ddp", "fsdp1"), ("fsdp2",)], ids=" ".join)
def test_every_door_keeps_every_law(four_workers: Any, kinds: tuple[str, ...], tmp_path: Path) -> None:
    four_workers.run(all_laws, str(tmp_path), kinds)
